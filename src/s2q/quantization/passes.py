"""What learning does to all values of inputs and weights at each step: in native code where it takes them, else in plain torch.

Values are the same bit for bit, but for the sums of Kronecker transforms; gradients are summed in another order.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.hadamard import hadamard_blocks
from s2q.numerics.kronecker import kronecker_apply
from s2q.numerics.straight_through import fake_quantize_rows
from s2q.runtime.native import learning, library


class Grid(NamedTuple):
    """On what each group of a row is rounded."""

    bits: int
    symmetric: bool
    groups: int = 1


class Mixing(NamedTuple):
    """What rows go through before they are rounded, in this order; None and 0 are nothing."""

    scale: Tensor | None = None
    """[K]"""
    divide: bool = False
    """By the scale, which is multiplied with otherwise."""
    left: Tensor | None = None
    """P1 and P2 of a Kronecker transform, [n1, n1] and [n2, n2]."""
    right: Tensor | None = None
    block: int = 0
    """Of a Hadamard transform."""


def prepare(x: Tensor, mixing: Mixing, grid: Grid | None = None, clip: Tensor | float = 1.0) -> Tensor:
    """x [..., K] mixed, and rounded with straight-through gradients.

    Args:
        grid: None does not round.
        clip: factor on the ranges, learned if it asks for a gradient; a scalar or broadcastable to [..., G].
    """
    if x.dtype == torch.float32 and library.why_not(x.device, x.dtype) is None:
        clip = torch.as_tensor(clip)
        # All at once: on the widths of a small model the nodes of autograd's graph are what takes the time.
        return _Prepared.apply(x, mixing.scale, mixing.left, mixing.right, clip, mixing.divide, mixing.block, grid)
    return _prepare(x, mixing, grid, clip)


def _prepare(x: Tensor, mixing: Mixing, grid: Grid | None, clip: Tensor | float) -> Tensor:
    if mixing.scale is not None:
        x = x / mixing.scale if mixing.divide else x * mixing.scale
    if mixing.left is not None:
        x = kronecker_apply(x, mixing.left, mixing.right)
    if mixing.block:
        x = hadamard_blocks(x, mixing.block)
    return x if grid is None else fake_quantize_rows(x, grid.bits, grid.symmetric, clip, grid.groups)


class _Prepared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, left, right, clip, divide, block, grid):
        ctx.divide, ctx.block, ctx.grid, ctx.clip_shape = divide, block, grid, clip.shape
        rows = made = x.reshape(-1, x.shape[-1])
        if scale is not None:
            made = rows / scale if divide else rows * scale
        scaled = made
        if left is not None:
            made = learning.kronecker(scaled, left, right)
        if block:
            made = learning.mix_blocks(made.view(-1, block)).view(rows.shape)
        mixed = factors = None
        if grid is not None:
            mixed = made.view(-1, rows.shape[1] // grid.groups)
            factors = clip.expand(*x.shape[:-1], grid.groups).reshape(-1)
            made = learning.round_groups(mixed, factors, grid.bits, grid.symmetric)
        kept = scaled if left is not None else None, mixed, factors
        ctx.save_for_backward(rows, scale, left, right, *kept)
        # A tensor of its own, even if nothing was done to it.
        return made.view(x.shape) if made is not rows else x.clone()

    @staticmethod
    def backward(ctx, gradient):
        rows, scale, left, right, scaled, mixed, factors = ctx.saved_tensors
        to_x, to_scale, *to_matrices, to_clip = ctx.needs_input_grad[:5]
        above = gradient.reshape(rows.shape)
        lefts = rights = scales = clips = None
        if ctx.grid is not None:
            above = above.view(mixed.shape)
            above, clips = learning.round_groups_back(above, mixed, factors, ctx.grid.bits, ctx.grid.symmetric)
            clips = clips.view(*gradient.shape[:-1], ctx.grid.groups).sum_to_size(ctx.clip_shape) if to_clip else None
        if ctx.block:
            above = learning.mix_blocks(above.view(-1, ctx.block))
        above = above.view(rows.shape)
        if left is not None:
            through = to_x or to_scale
            above, lefts, rights = learning.kronecker_back(above, scaled, left, right, through, any(to_matrices))
        if to_scale:
            scales = learning.column_dots(above, rows)
            scales = scales.div_(scale).div_(scale).neg_() if ctx.divide else scales
        if to_x and scale is not None:
            above = above / scale if ctx.divide else above * scale
        return above.view(gradient.shape) if to_x else None, scales, lefts, rights, clips, None, None, None
