"""Switch a transformer's attention to int8 and back: whatever it sends through `scaled_dot_product_attention`.

diffusers' models call `torch.nn.functional.scaled_dot_product_attention` themselves or through the native backend of its
dispatcher; a `TorchFunctionMode` that is on while the transformer runs sees both. Nothing of the model is replaced,
nothing is saved with it, and other models (text encoder, VAE) are left alone.
"""

import threading
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from s2q.runtime import attention_reference
from s2q.runtime.native import attention as native

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`s2q.runtime.attention_reference.int8_attention`, by native code where there is some."""
    centre = attention_reference.means(key, value)
    if native.why_not() is None:
        return native.int8_attention(query, key, value, mask, scale, centre)
    out = attention_reference.int8_attention(query, key, value, mask, scale, centre)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


_int8_attention = torch.library.custom_op("s2q::int8_attention", _compute, mutates_args=())


@_int8_attention.register_fake
def _(query, key, value, mask, scale):
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)


def why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str | None:
    """None if int8 attention takes this call of `scaled_dot_product_attention`, else the reason why it does not."""
    given = (query, key, value)
    if query.device.type != "cpu":
        return f"it runs on the CPU, not on {query.device.type}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return "it has no gradient"
    if dropout_p or is_causal or enable_gqa:
        return "it knows no dropout, causal mask or grouped queries"
    if query.dtype not in native.KINDS or {tensor.dtype for tensor in given} != {query.dtype}:
        return f"it takes float32 and bfloat16, not {query.dtype}"
    if attn_mask is not None and attn_mask.dtype not in native.MASK_KINDS:
        return f"it takes boolean, float32 and bfloat16 masks, not {attn_mask.dtype}"
    if attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled():
        return "it has no gradient"
    if query.dim() != 4 or key.shape[:2] != query.shape[:2] or key.shape[:3] != value.shape[:3]:
        return "it takes [B, H, S, D] with the same B and H throughout"
    if not all(tensor.numel() for tensor in given):
        return "it takes at least one query and one key"
    return None


class _Mode(TorchFunctionMode):
    def __init__(self, owner: "Int8Attention"):
        super().__init__()
        self._owner = owner

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not functional.scaled_dot_product_attention:
            # The method calls super(), which torch.compile does not trace from within a mode.
            return (torch.unflatten if function is Tensor.unflatten else function)(*args, **kwargs)
        named = dict(zip(_NAMES, args, strict=False)) | kwargs
        declined = why_not(**named)
        if declined is not None:
            self._owner.declined[declined] += 1
            return function(*args, **kwargs)
        self._owner.computed += 1
        query, scale = named["query"], named.get("scale")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        # An operator's own way takes as long as the attention of a small model: it is for tracing.
        compute = _int8_attention if torch.compiler.is_compiling() else _compute
        return compute(query, named["key"], named["value"], named.get("attn_mask"), scale)


class _Entered(threading.local):
    """The modes that are on in this thread: a model may be called from several, and from within itself."""

    def __init__(self) -> None:
        self.modes: list[_Mode] = []

    def __reduce__(self) -> tuple:  # copies of a model begin with none
        return (_Entered, ())


class Int8Attention:
    """Int8 attention installed on a transformer; `remove()`, or leaving it as a context, gives back what was there."""

    computed: int
    """Calls of `scaled_dot_product_attention` computed in int8 so far."""
    declined: Counter[str]
    """Reason → calls left to torch because of it."""

    def __init__(self, transformer: nn.Module):
        self.computed, self.declined = 0, Counter()
        self._name = type(transformer).__name__
        self._entered = _Entered()
        self._transformer = transformer
        self._handles = [
            transformer.register_forward_pre_hook(self._begin),
            transformer.register_forward_hook(self._end, always_call=True),
        ]
        transformer._s2q_int8_attention = self

    def remove(self) -> None:
        """Attention is torch's again; a second time does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            del self._transformer._s2q_int8_attention
        self._handles = []

    def __enter__(self) -> "Int8Attention":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def _begin(self, *_: Any) -> None:
        mode = _Mode(self)
        mode.__enter__()
        self._entered.modes.append(mode)

    def _end(self, module: nn.Module, inputs: Any, result: Any) -> None:
        if not self._entered.modes:  # a hook before ours failed
            return
        self._entered.modes.pop().__exit__(None, None, None)
        if result is not None and not self.computed and not self.declined:
            warnings.warn(
                f"no attention of {self._name} passes through scaled_dot_product_attention, so none is in int8: "
                "use diffusers' native attention backend",
                stacklevel=2,
            )


def attention_of(transformer: nn.Module) -> dict[str, Any]:
    """How a transformer's attention is computed, for reports: kind, what computes it, and what was left to torch so far."""
    installed = getattr(transformer, "_s2q_int8_attention", None)
    if installed is None:
        return {"kind": "float"}
    missing = native.why_not()
    by = f"native code, {native.instruction_sets()[-1]}" if missing is None else f"plain torch: native code {missing}"
    return {"kind": "int8", "by": by, "declined": dict(installed.declined)}


def int8_attention(transformer: nn.Module) -> Int8Attention:
    """Compute a transformer's attention in int8 from now on, on the CPU; see docs/runtime.md, "Attention".

    It changes the result a little and saves time where the CPU has VNNI. What it does not take is computed by
    torch as before, see `declined` of what is returned.

    Args:
        transformer: any module that calls `torch.nn.functional.scaled_dot_product_attention`, quantized or not.

    Returns:
        What removes it again, by `remove()` or as a context manager.

    Raises:
        ValueError: it is installed already.
    """
    if hasattr(transformer, "_s2q_int8_attention"):
        raise ValueError(f"this {type(transformer).__name__} has int8 attention already: remove() that first")
    return Int8Attention(transformer)
