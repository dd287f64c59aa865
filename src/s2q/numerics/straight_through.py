"""Rounding in floating point with straight-through gradients, for what is learned.

Values equal those of `s2q.numerics.quantizer` bit for bit. Each function is one node of autograd's graph, keeps no more
than its inputs for the way back, and makes no tensors of booleans, which are slow on CPUs: much of the time of learning is
spent here.
"""

import torch
from torch import Tensor

from s2q.numerics.quantizer import grid, in_groups, integer_range, per_value

# Its gradient passes strictly between two bounds: a comparison and a product in one quick pass.
_between = torch.ops.aten.hardtanh_backward


def fake_quantize(x: Tensor, scale: Tensor, bits: int, zero: Tensor | None = None) -> Tensor:
    """Quantize and go back on a grid that is given.

    Gradients reach `x` where it is not clipped, and `scale` everywhere, which is how clipping is learned.

    Args:
        x: [..., K], floating point.
        scale: [..., G].
        zero: [..., G], whole numbers; None is the symmetric grid.

    Returns:
        ``dequantize(quantize(x, scale, bits, zero), scale, zero)``.
    """
    return _OnGrid.apply(x, per_value(scale, x), per_value(zero, x), bits)


def fake_quantize_rows(x: Tensor, bits: int, symmetric: bool, clip: Tensor | float = 1.0, groups: int = 1) -> Tensor:
    """`fake_quantize` on each group's own `grid`, through whose ends gradients pass as well.

    Args:
        x: [..., K], floating point.
        clip: factor on the range, learned if it asks for a gradient; a scalar or broadcastable to [..., G].
    """
    return _OnOwnGrid.apply(x, clip, bits, symmetric, groups)


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
        ctx.save_for_backward(x, scale, zero)
        ctx.bits = bits
        return _whole(x / scale, zero, bits).mul_(scale)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale, zero = ctx.saved_tensors
        passed, to_scale = _gradients(gradient, x, scale, zero, ctx.bits)
        return passed, to_scale.sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None, None, None


class _OnOwnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, clip: Tensor | float, bits: int, symmetric: bool, groups: int) -> Tensor:
        scale, zero = grid(x, bits, symmetric, clip, groups)
        learned = clip if isinstance(clip, Tensor) else None
        ctx.save_for_backward(x, scale, zero, learned)
        ctx.clip, ctx.bits, ctx.groups = clip if learned is None else None, bits, groups
        scale, zero = scale.unsqueeze(-1), None if zero is None else zero.unsqueeze(-1)
        return _whole(in_groups(x, groups) / scale, zero, bits).mul_(scale).flatten(-2)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale, zero, learned = ctx.saved_tensors
        clip = ctx.clip if learned is None else learned
        smallest, largest = integer_range(ctx.bits)
        parts, gradient = in_groups(x, ctx.groups), in_groups(gradient, ctx.groups)
        column, column_zero = scale.unsqueeze(-1), None if zero is None else zero.unsqueeze(-1)
        passed, to_scale = _gradients(gradient, parts, column, column_zero, ctx.bits)
        low, high = parts.amin(-1), parts.amax(-1)
        if zero is None:
            # The end that is farther from 0 makes the range, and a positive one where both are as far.
            span, steps = torch.maximum(high, -low), largest
            ends = (high >= -low).to(x.dtype)
            ends = ends, ends - 1
        else:
            span, steps = high.clamp(min=0) - low.clamp(max=0), largest - smallest
            ends = (high >= 0).to(x.dtype), -(low <= 0).to(x.dtype)
        # Groups of zeros have a step of 1, whatever their range.
        to_scale = to_scale.sum(-1) * (span * clip > 0)
        to_clip = (to_scale * span / steps).sum_to_size(learned.shape) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_clip, None, None, None
        to_span = to_scale * clip / steps
        for end, sign in zip((high, low), ends, strict=True):
            _add_to_ends(passed, parts, end.unsqueeze(-1), (to_span * sign).unsqueeze(-1))
        return passed.flatten(-2), to_clip, None, None, None


def _whole(ratio: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """code − zero of x / scale, which is overwritten."""
    smallest, largest = integer_range(bits)
    codes = ratio.round_()
    if zero is None:
        return codes.clamp_(smallest, largest)
    return codes.add_(zero).clamp_(smallest, largest).sub_(zero)


def _gradients(gradient: Tensor, x: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
    """What passes to x, and what each value gives to its step size: both of the shape of `x`."""
    smallest, largest = integer_range(bits)
    ratio = x / scale
    codes = ratio.round() if zero is None else ratio.round().add_(zero)
    passed = _between(gradient, codes, smallest - 0.5, largest + 0.5)
    whole = codes.clamp_(smallest, largest)
    if zero is not None:
        whole = whole.sub_(zero)
    return passed, whole.mul_(gradient).sub_(ratio.mul_(passed))


def _add_to_ends(gradient: Tensor, x: Tensor, end: Tensor, share: Tensor) -> None:
    """Add `share` [..., G, 1] to the gradient of the values that are `end`, in equal parts if there are several."""
    there = x - end
    # 0 is the only distance within the smallest normal number, but for rows of numbers that small themselves.
    there = _between(torch.ones_like(there), there, -torch.finfo(x.dtype).tiny, torch.finfo(x.dtype).tiny)
    gradient.add_(there.mul_(share / there.sum(-1, keepdim=True)))
