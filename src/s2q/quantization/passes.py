"""What learning does to all values of inputs and weights at each step: in native code where it takes them, else in plain torch.

Values are the same bit for bit, but for the sums of Kronecker transforms; gradients are summed in another order. Each pass is
one node of autograd's graph: on the widths of a small model the nodes are what takes the time.
"""

import torch
from torch import Tensor

from s2q.numerics import hadamard, kronecker, straight_through
from s2q.runtime.native import learning, library


def _native(x: Tensor) -> bool:
    return x.dtype == torch.float32 and library.why_not(x.device, x.dtype) is None


def fake_quantize_rows(x: Tensor, bits: int, symmetric: bool, clip: Tensor | float = 1.0, groups: int = 1) -> Tensor:
    """`s2q.numerics.straight_through.fake_quantize_rows`."""
    if not _native(x):
        return straight_through.fake_quantize_rows(x, bits, symmetric, clip, groups)
    return _Rounded.apply(x, torch.as_tensor(clip), bits, symmetric, groups)


def hadamard_blocks(x: Tensor, block: int) -> Tensor:
    """`s2q.numerics.hadamard.hadamard_blocks`."""
    return _Mixed.apply(x, block) if _native(x) else hadamard.hadamard_blocks(x, block)


def kronecker_apply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`s2q.numerics.kronecker.kronecker_apply`, up to the order of its sums."""
    return _Transformed.apply(x, left, right) if _native(x) else kronecker.kronecker_apply(x, left, right)


def scale_columns(x: Tensor, scale: Tensor) -> Tensor:
    """x · scale: [..., K] and [K]."""
    return _Scaled.apply(x, scale) if _native(x) else x * scale


def divide_columns(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale of an x that is not learned: [N, K] and [K]."""
    return _Divided.apply(x, scale) if _native(x) else x / scale


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, clip: Tensor, bits: int, symmetric: bool, groups: int) -> Tensor:
        flat = x.reshape(-1, x.shape[-1] // groups)
        factors = clip.expand(*x.shape[:-1], groups).reshape(-1)
        ctx.save_for_backward(flat, factors)
        ctx.bits, ctx.symmetric, ctx.shape, ctx.clip = bits, symmetric, (*x.shape[:-1], groups), clip.shape
        return learning.round_groups(flat, factors, bits, symmetric).view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        flat, factors = ctx.saved_tensors
        above = gradient.reshape(flat.shape)
        passed, to_clip = learning.round_groups_back(above, flat, factors, ctx.bits, ctx.symmetric)
        return (
            passed.view(gradient.shape) if ctx.needs_input_grad[0] else None,
            to_clip.view(ctx.shape).sum_to_size(ctx.clip) if ctx.needs_input_grad[1] else None,
            *[None] * 3,
        )


class _Mixed(torch.autograd.Function):
    """The matrix is symmetric: its gradient is the map itself."""

    @staticmethod
    def forward(ctx, x: Tensor, block: int) -> Tensor:
        ctx.block = block
        return learning.mix_blocks(x.reshape(-1, block)).view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return learning.mix_blocks(gradient.reshape(-1, ctx.block)).view(gradient.shape), None


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, left, right)
        return learning.kronecker(flat, left, right).view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        flat, left, right = ctx.saved_tensors
        to_x, *to_matrices = ctx.needs_input_grad
        above = gradient.reshape(flat.shape)
        found, *matrices = learning.kronecker_back(above, flat, left, right, to_x, any(to_matrices))
        return found.view(gradient.shape) if to_x else None, *matrices


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale = ctx.saved_tensors
        to_x, to_scale = ctx.needs_input_grad
        above, own = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (gradient, x))
        return gradient * scale if to_x else None, learning.column_dots(above, own) if to_scale else None


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x / scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale = ctx.saved_tensors
        return None, learning.column_dots(gradient, x).div_(scale).div_(scale).neg_()
