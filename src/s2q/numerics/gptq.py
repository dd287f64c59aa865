"""GPTQ (arXiv 2210.17323): round a weight so that the error of its output, not of itself, is small."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.quantizer import integer_range

# Factors on the step sizes that `gptq_search` chooses from, row by row.
STEPS_TRIED = tuple(1.04 - 0.04 * step for step in range(9))


def accumulate_hessian(hessian: Tensor, x: Tensor) -> None:
    """Add 2 xᵀx to `hessian` in place, the Hessian of ‖x wᵀ − x ŵᵀ‖² with respect to a row of weights.

    Args:
        hessian: [K, K], float32 or float64.
        x: [M, K], the inputs of the linear as it will see them (transformed and quantized).
    """
    x = x.to(hessian.dtype)
    hessian.addmm_(x.mT, x, alpha=2.0)


class HessianFactor(NamedTuple):
    """What rounding needs of a Hessian: J (H + damping) J = Rᵀ D R, where J takes the columns from the last to the first.

    R tells of each column what those that are rounded before it do to it.
    """

    order: Tensor
    """int64 [K], the column that is rounded first at the front."""
    upper: Tensor
    """R, float64 [K, K], upper triangular with ones on its diagonal."""
    weights: Tensor
    """D, float64 [K]: what the square of a rounding error counts."""


def hessian_factor(hessian: Tensor, damp: float = 0.01, by_importance: bool = False) -> HessianFactor:
    """Factorise a Hessian for `gptq_round`.

    Args:
        hessian: [K, K], see `accumulate_hessian`. Inputs that are always zero are decoupled from the others.
        damp: share of the mean diagonal that is added to the diagonal.
        by_importance: columns in falling order of their inputs' squares, instead of their own: what is rounded last makes
            up for all and is made up for by none, and so should weigh least (`act_order` of GPTQ's authors).

    Raises:
        ValueError: the Hessian is not finite, or not positive definite even with a thousandfold damp.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the GPTQ Hessian has entries that are not finite: an input of this layer overflowed")
    mean = hessian.diagonal().to(torch.float64).mean().clamp(min=torch.finfo(torch.float64).tiny)
    order = torch.arange(len(hessian), device=hessian.device)
    if by_importance:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    back = order.flip(0)
    for times in (1, 10, 100, 1000):
        damped = hessian[back.unsqueeze(1), back].to(torch.float64)
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = mean
        diagonal += times * damp * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            diagonal = lower.diagonal().clone()
            return HessianFactor(order, lower.div_(diagonal).mT, diagonal.square())
    raise ValueError(f"the GPTQ Hessian is not positive definite even with {1000 * damp:g} of its mean diagonal added")


def gptq_round(
    weight: Tensor, scale: Tensor, factor: HessianFactor, bits: int, zero: Tensor | None = None, block_size: int = 32
) -> Tensor:
    """Codes of `weight` on a fixed grid, columns in order, each making up for the errors of those before it.

    With e = J (w − ŵ) the error of the output is Σ_k D_k (Σ_j≥k R_kj e_j)²: column k of J w is best rounded from
    (J w)_k + Σ_j>k R_kj e_j. These are GPTQ's codes, the Hessian not inverted: Babai's nearest plane (arXiv 2507.18553).

    Args:
        weight: [N, K].
        scale: [N, G], step size of each row's groups of K/G columns; it is not changed.
        factor: of `hessian_factor`. With a diagonal Hessian the result is round-to-nearest.
        zero: [N, G], zero points of an asymmetric grid.
        block_size: columns that are taken one by one; it does not change the result beyond rounding.

    Returns:
        int8 [N, K].
    """
    return _rounded(weight, scale, factor, bits, zero, block_size)[0]


def gptq_search(
    weight: Tensor, scale: Tensor, factor: HessianFactor, bits: int, zero: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`gptq_round` on several grids, and of each row the one with the least error of its output.

    A range that is best for rounding to nearest is too wide for GPTQ: what it cuts off, later columns make up for.

    Args:
        scale: [N, G], where the search begins: each row's steps are multiplied by one of `STEPS_TRIED`.

    Returns:
        Codes int8 [N, K], and the steps that they belong to, [N, G] in the dtype of `scale`.
    """
    codes, steps, least = None, scale, None
    for share in STEPS_TRIED:
        tried = scale * share
        rounded, error = _rounded(weight, tried, factor, bits, zero)
        if codes is None:
            codes, steps, least = rounded, tried, error
            continue
        better = (error < least).unsqueeze(1)
        codes, steps = torch.where(better, rounded, codes), torch.where(better, tried, steps)
        least = torch.minimum(error, least)
    return codes, steps


def _rounded(
    weight: Tensor, scale: Tensor, factor: HessianFactor, bits: int, zero: Tensor | None, block_size: int = 32
) -> tuple[Tensor, Tensor]:
    """Codes, and Σ D e² of each row, float64 [N]."""
    smallest, largest = integer_range(bits)
    back = factor.order.flip(0)
    # Columns of J w are rows here: what is worked on lies together. First J w, then what it is rounded from, then e.
    work = weight.mT[back].to(torch.float64)
    per_group = len(work) // scale.shape[1]
    steps = scale.mT.to(torch.float64).contiguous()
    zeros = torch.zeros_like(steps) if zero is None else zero.mT.to(torch.float64).contiguous()
    codes = torch.empty_like(work, dtype=torch.int8)
    error = torch.zeros_like(work[0])
    columns = back.tolist()
    for start, middle, stop in _by_halves(0, len(work), block_size):
        if middle < stop:
            work[start:middle].addmm_(factor.upper[start:middle, middle:stop], work[middle:stop])
            continue
        for k in reversed(range(start, stop)):
            step, offset = steps[columns[k] // per_group], zeros[columns[k] // per_group]
            wanted = work[k].addmv_(work[k + 1 : stop].mT, factor.upper[k, k + 1 : stop])
            code = (wanted / step).round_().add_(offset).clamp_(smallest, largest)
            codes[columns[k]] = code
            value = code.sub_(offset).mul_(step)
            error.addcmul_((wanted - value).square_(), factor.weights[k])
            torch.sub(weight[:, columns[k]], value, out=wanted)
    return codes.mT.contiguous(), error


def _by_halves(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """From the last column to the first, so that nearly all the work is matrix products.

    (start, stop, stop) are columns to round, at most `size`; (start, middle, stop) says that all from `middle` on are
    rounded, and that it is time to see what their errors do to those before.
    """
    if stop - start <= size:
        yield start, stop, stop
        return
    middle = (start + stop) // 2
    yield from _by_halves(middle, stop, size)
    yield start, middle, stop
    yield from _by_halves(start, middle, size)
