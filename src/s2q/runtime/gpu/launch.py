"""What every launch needs: the right device, sizes that Triton takes, and a pointer where a tensor is absent."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Sums and products stay apart, as in the definition: nothing in these kernels gains from fusing them.
EXACT = {"enable_fp_fusion": False}


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launch where `tensor` lives, which need not be the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def at_once(tensor: Tensor) -> int:
    """How many large programs run at a time where `tensor` lives: one a multiprocessor; a few, in the interpreter."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 3


def padded(size: int, least: int = 16) -> int:
    """The power of two that holds `size`."""
    return max(least, 1 << (size - 1).bit_length())


def pointer(tensor: Tensor | None, instead: Tensor) -> Tensor:
    """`tensor`, contiguous; or any tensor in its place, which the kernel is told not to read."""
    return instead if tensor is None else tensor.contiguous()
