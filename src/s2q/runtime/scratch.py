"""Buffers that are used again from call to call: large fresh ones cost more in page faults than what is written into them."""

import math
import threading

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}


_BUFFERS = _Buffers()


def scratch(purpose: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, valid until this thread asks for the same purpose again.

    A buffer grows to the largest size asked for, and stays.
    """
    size, key = math.prod(shape), (purpose, dtype)
    if key not in _BUFFERS.kept or _BUFFERS.kept[key].numel() < size:
        _BUFFERS.kept.pop(key, None)
        # A tensor of inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            _BUFFERS.kept[key] = torch.empty(size, dtype=dtype)
    return _BUFFERS.kept[key][:size].view(shape)
