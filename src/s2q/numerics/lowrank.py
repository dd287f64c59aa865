"""A few directions of a weight kept in 16 bits, the rest quantized: SVDQuant (arXiv 2411.05007)."""

from collections.abc import Callable

import torch
from torch import Tensor


def truncated_svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation up · down of `weight` [N, K] of that rank: up [N, r], down [r, K], float64.

    The singular values are shared evenly between both.
    """
    u, sigma, v = torch.linalg.svd(weight.double(), full_matrices=False)
    root = sigma[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def output_error(difference: Tensor, gram: Tensor) -> float:
    """‖x eᵀ‖² for a weight difference e [N, K] and the inputs' Gram matrix xᵀx [K, K]."""
    difference = difference.double()
    return float(((difference @ gram.double()) * difference).sum())


def split_low_rank(
    weight: Tensor, rank: int, rounded: Callable[[Tensor], Tensor], gram: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """up, down whose remainder quantizes well: refit to weight − Q(remainder) as long as the output error falls.

    Args:
        weight: [N, K].
        rank: r.
        rounded: quantizes a remainder [N, K] and goes back to real numbers.
        gram: xᵀx of the inputs, [K, K].
        rounds: most refits.

    Returns:
        up [N, r] and down [r, K], bfloat16, as they are stored: the remainder must be taken from these.
    """
    best, least, quantized = None, None, torch.zeros_like(weight, dtype=torch.float64)
    for _ in range(rounds + 1):
        up, down = (factor.bfloat16() for factor in truncated_svd(weight.double() - quantized, rank))
        branch = up.double() @ down.double()
        quantized = rounded(weight.double() - branch).double()
        error = output_error(weight.double() - branch - quantized, gram)
        if least is not None and error >= least:
            break
        best, least = (up, down), error
    return best
