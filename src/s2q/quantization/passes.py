"""What learning does to every value of inputs and weights at each step: in native code where it takes them, else in plain torch.

Values are the same bit for bit, but for the sums of Kronecker transforms; gradients are summed in another order.
"""

import torch
from torch import Tensor

from s2q.numerics import hadamard, kronecker, straight_through
from s2q.numerics.quantizer import in_groups
from s2q.runtime.native import learning, library


def _native(x: Tensor) -> bool:
    return x.dtype == torch.float32 and library.why_not(x.device, x.dtype) is None


def fake_quantize_rows(x: Tensor, bits: int, symmetric: bool, clip: Tensor | float = 1.0, groups: int = 1) -> Tensor:
    """`s2q.numerics.straight_through.fake_quantize_rows`."""
    if not _native(x):
        return straight_through.fake_quantize_rows(x, bits, symmetric, clip, groups)
    # One factor for each group; autograd brings their gradients together again.
    clip = torch.as_tensor(clip).expand(*x.shape[:-1], groups)
    return _Rounded.apply(in_groups(x, groups).flatten(0, -2), clip.flatten(), bits, symmetric).view(x.shape)


def hadamard_blocks(x: Tensor, block: int) -> Tensor:
    """`s2q.numerics.hadamard.hadamard_blocks`."""
    if not _native(x):
        return hadamard.hadamard_blocks(x, block)
    return _Mixed.apply(x.reshape(-1, block)).view(x.shape)


def kronecker_apply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`s2q.numerics.kronecker.kronecker_apply`, up to the order of its sums."""
    if not _native(x):
        return kronecker.kronecker_apply(x, left, right)
    return _Transformed.apply(x.flatten(0, -2), left, right).view(x.shape)


def scale_columns(x: Tensor, scale: Tensor) -> Tensor:
    """x · scale: [..., K] and [K]."""
    return _Scaled.apply(x, scale) if _native(x) else x * scale


def divide_columns(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale of an x that is not learned: [N, K] and [K]."""
    return _Divided.apply(x, scale) if _native(x) else x / scale


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, clip: Tensor, bits: int, symmetric: bool) -> Tensor:
        ctx.save_for_backward(x, clip)
        ctx.bits, ctx.symmetric = bits, symmetric
        return learning.round_groups(x, clip, bits, symmetric)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, clip = ctx.saved_tensors
        found = learning.round_groups_back(gradient, x, clip, ctx.bits, ctx.symmetric)
        passed, to_clip = (one if asked else None for one, asked in zip(found, ctx.needs_input_grad, strict=False))
        return passed, to_clip, None, None


class _Mixed(torch.autograd.Function):
    """The matrix is symmetric: its gradient is the map itself."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return learning.mix_blocks(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return learning.mix_blocks(gradient)


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(x, left, right)
        return learning.kronecker(x, left, right)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        to_x, *to_matrices = ctx.needs_input_grad
        return learning.kronecker_back(gradient, *ctx.saved_tensors, to_x, any(to_matrices))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale = ctx.saved_tensors
        to_x = gradient * scale if ctx.needs_input_grad[0] else None
        to_scale = learning.column_dots(gradient.flatten(0, -2), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return to_x, to_scale


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x / scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale = ctx.saved_tensors
        return None, learning.column_dots(gradient, x).div_(scale).div_(scale).neg_()
