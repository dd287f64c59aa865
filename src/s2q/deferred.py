"""Tensors that are read, or made, only when they are written, so that no model is in memory whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Deferred:
    """A tensor that is there when it is asked for."""

    like: Tensor
    """Its shape and dtype, on the meta device."""
    make: Callable[[], Tensor]


def held(tensors: Mapping[str, Tensor]) -> dict[str, Deferred]:
    """Tensors that are in memory anyway."""
    return {name: Deferred(tensor.to("meta"), lambda tensor=tensor: tensor) for name, tensor in tensors.items()}


def stored(path: Path) -> dict[str, Deferred]:
    """The tensors of a safetensors file by name; nothing but its header is read before one is asked for."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        # Mapped, not read: a page is fetched when it is looked at.
        likes = [file.get_tensor(name).to("meta") for name in names]
    return {name: Deferred(like, partial(read_tensor, path, name)) for name, like in zip(names, likes, strict=True)}


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, on the CPU."""
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def made(tensors: Mapping[str, Deferred]) -> dict[str, Tensor]:
    """All of them, in memory."""
    return {name: tensor.make() for name, tensor in tensors.items()}
