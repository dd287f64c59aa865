"""The symmetric uniform quantizer, Eq. (1) of arXiv 2508.04016, as pure functions of tensors."""

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8


def integer_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a symmetric `bits`-bit grid: −2^(b−1) and 2^(b−1)−1.

    Raises:
        ValueError: `bits` is not one of 2 … 8 (codes are held in int8).
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS}..{MAX_BITS}, got {bits}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def row_scale(x: Tensor, bits: int, clip: Tensor | float = 1.0) -> Tensor:
    """Step size Δ of each row: clip · max|x| / (2^(b−1) − 1).

    One row is one token (activations) or one output channel (weights).

    Args:
        x: [..., K], floating point.
        clip: factor on the range, 1 is min–max; a scalar or broadcastable to [..., 1].

    Returns:
        [..., 1] in the dtype of `x`. A row of zeros gets 1, so that it quantizes to zeros.
    """
    _, largest = integer_range(bits)
    scale = clip * x.abs().amax(dim=-1, keepdim=True) / largest
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes clamp(round(x / Δ), −2^(b−1), 2^(b−1)−1) as int8; halves round to even.

    Args:
        x: [..., K], floating point.
        scale: broadcastable to `x`.
    """
    smallest, largest = integer_range(bits)
    return (x / scale).round_().clamp_(smallest, largest).to(torch.int8)


def fake_quantize(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Quantize and go back, with the straight-through gradient of rounding.

    Gradients reach `x` where it is not clipped, and `scale` everywhere, which is how clipping is learned.
    The value equals ``quantize(x, scale, bits) * scale`` bit for bit.
    """
    smallest, largest = integer_range(bits)
    ratio = x / scale
    rounded = ratio + (ratio.round() - ratio).detach()
    # ratio + (round − ratio) may miss the integer by one ulp in floating point; the outer pair restores it.
    rounded = rounded + (ratio.detach().round() - rounded).detach()
    return rounded.clamp(smallest, largest) * scale
