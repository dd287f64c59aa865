"""The uniform quantizers, Eq. (1) of arXiv 2508.04016 and its relatives, as pure functions of tensors.

A row of K values (a token, or an output channel of a weight) is cut into G groups of K/G neighbours, usually one; each
group has a step size and, on asymmetric grids, a zero point: x ≈ (code − zero) · scale.
"""

import torch
from torch import Tensor

from s2q.numerics.bits import MAX_BITS, MIN_BITS


def integer_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a `bits`-bit grid: −2^(b−1) and 2^(b−1)−1.

    Raises:
        ValueError: `bits` is not one of 2 … 8 (codes are held in int8).
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS}..{MAX_BITS}, got {bits}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def group_count(columns: int, group_size: int | None) -> int:
    """G: how many groups a row of K = `columns` values is cut into, each as long as possible but within `group_size`.

    Groups of a row are of one length, so a width that `group_size` does not divide gets its next smaller divisor
    (widths of released models are divisible by the usual sizes). None is one group.
    """
    if group_size is None:
        return 1
    return columns // next(size for size in range(min(group_size, columns), 0, -1) if columns % size == 0)


def in_groups(x: Tensor, groups: int) -> Tensor:
    """[..., K] → [..., G, K/G], a view if `x` allows it."""
    return x.unflatten(-1, (groups, x.shape[-1] // groups))


def row_scale(x: Tensor, bits: int, clip: Tensor | float = 1.0, groups: int = 1) -> Tensor:
    """Step size of each group on the symmetric grid: clip · max|x| / (2^(b−1) − 1).

    Args:
        x: [..., K], floating point.
        clip: factor on the range, 1 is min–max; a scalar or broadcastable to [..., G].

    Returns:
        [..., G] in the dtype of `x`. A group of zeros gets 1, so that it quantizes to zeros.
    """
    _, largest = integer_range(bits)
    if groups == 1:
        scale = clip * x.abs().amax(dim=-1, keepdim=True) / largest
    else:
        scale = clip * in_groups(x, groups).abs().amax(dim=-1) / largest
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def affine_grid(x: Tensor, bits: int, clip: Tensor | float = 1.0, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Step size and zero point of each group on the asymmetric grid from min x to max x, both stretched to contain 0.

    Args:
        x: [..., K], floating point.
        clip: factor on both ends of the range.

    Returns:
        scale and zero, [..., G] in the dtype of `x`; the zeros are whole numbers in the range of the codes.
    """
    parts = in_groups(x, groups)
    return range_grid(parts.amin(dim=-1), parts.amax(dim=-1), bits, clip)


def range_grid(low: Tensor, high: Tensor, bits: int, clip: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """`affine_grid` from ranges that are known: low and high [..., G] → scale and zero [..., G]."""
    smallest, largest = integer_range(bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = clip * (high - low) / (largest - smallest)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = ((-clip * low / scale).detach().round() + smallest).clamp(smallest, largest)
    return scale, zero


def grid(
    x: Tensor, bits: int, symmetric: bool, clip: Tensor | float = 1.0, groups: int = 1
) -> tuple[Tensor, Tensor | None]:
    """`row_scale` without a zero point, or `affine_grid`: scale and zero [..., G], zero None on the symmetric grid."""
    return (row_scale(x, bits, clip, groups), None) if symmetric else affine_grid(x, bits, clip, groups)


def per_value(values: Tensor | None, x: Tensor) -> Tensor | None:
    """Each group's value over its columns: [..., G] → broadcastable to `x` [..., K]."""
    if values is None or values.ndim == 0 or values.shape[-1] == 1:
        return values
    return values.repeat_interleave(x.shape[-1] // values.shape[-1], dim=-1)


def quantize(x: Tensor, scale: Tensor, bits: int, zero: Tensor | None = None) -> Tensor:
    """Codes clamp(round(x / scale) + zero, −2^(b−1), 2^(b−1)−1) as int8; halves round to even.

    Args:
        x: [..., K], floating point.
        scale: [..., G].
        zero: [..., G], whole numbers; None is the symmetric grid.
    """
    smallest, largest = integer_range(bits)
    codes = (x / per_value(scale, x)).round_()
    if zero is not None:
        codes = codes.add_(per_value(zero, x))
    return codes.clamp_(smallest, largest).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(code − zero) · scale: int8 [..., K] → [..., K] in the dtype of `scale`."""
    values = codes.to(scale.dtype)
    if zero is not None:
        values = values - per_value(zero, values)
    return values * per_value(scale, values)
