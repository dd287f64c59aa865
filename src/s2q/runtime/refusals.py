"""What packed weights cannot do, refused before anything has changed and with what to do instead.

Without this, `fuse_lora` and `fuse_qkv_projections` reach for a float `weight` and end in an error of shapes or dtypes,
some layers changed and some not.
"""

from functools import partial
from typing import Any, NoReturn

from torch import nn

REFUSED = {
    "fuse_lora": "an adapter cannot be added into packed integer weights. Leave it attached (two thin products a "
    "layer), or call dequantize() on the transformer first and fuse into its float weights",
    "fuse_qkv_projections": "q, k and v are packed each with its own scales and cannot be joined. There is nothing to "
    "gain: they quantize their shared input once already",
}
"""Method of diffusers' models → why it cannot be, and what to do."""


class UnsupportedError(ValueError):
    """Something that float weights can do and packed ones cannot."""


def refuse(model: nn.Module) -> None:
    """Let the methods of `REFUSED` raise `UnsupportedError` on this model."""
    for name in REFUSED:
        if hasattr(model, name):
            setattr(model, name, partial(_raise, name, type(model).__name__))


def allow_again(model: nn.Module) -> None:
    """Undo `refuse`, for a model that has float weights again."""
    for name in REFUSED:
        model.__dict__.pop(name, None)


def _raise(name: str, model: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedError(f"{name} of a {model} that s2q quantized: {REFUSED[name]}")
