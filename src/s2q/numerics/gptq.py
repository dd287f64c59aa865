"""GPTQ (arXiv 2210.17323): round a weight so that the error of its output, not of itself, is small."""

from collections.abc import Iterator

import torch
from torch import Tensor

from s2q.numerics.quantizer import integer_range


def accumulate_hessian(hessian: Tensor, x: Tensor) -> None:
    """Add 2 xᵀx to `hessian` in place, the Hessian of ‖x wᵀ − x ŵᵀ‖² with respect to a row of weights.

    Args:
        hessian: [K, K], float32 or float64.
        x: [M, K], the inputs of the linear as it will see them (transformed and quantized).
    """
    x = x.to(hessian.dtype)
    hessian.addmm_(x.mT, x, alpha=2.0)


def hessian_factor(hessian: Tensor, damp: float = 0.01) -> Tensor:
    """What `gptq_round` needs of a Hessian: R, upper triangular with ones on its diagonal, J (H + damping) J = Rᵀ D R.

    J turns the order round: columns are rounded from the first to the last, and R tells of each what those before it do to it.

    Args:
        hessian: [K, K], see `accumulate_hessian`. Inputs that are always zero are decoupled from the others.
        damp: share of the mean diagonal that is added to the diagonal.

    Returns:
        float64 [K, K].

    Raises:
        ValueError: the Hessian is not finite, or not positive definite even with a thousandfold damp.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the GPTQ Hessian has entries that are not finite: an input of this layer overflowed")
    mean = hessian.diagonal().to(torch.float64).mean().clamp(min=torch.finfo(torch.float64).tiny)
    for times in (1, 10, 100, 1000):
        damped = hessian.flip(0, 1).to(torch.float64)
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = mean
        diagonal += times * damp * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower.div_(lower.diagonal().clone()).mT
    raise ValueError(f"the GPTQ Hessian is not positive definite even with {1000 * damp:g} of its mean diagonal added")


def gptq_round(
    weight: Tensor, scale: Tensor, factor: Tensor, bits: int, zero: Tensor | None = None, block_size: int = 32
) -> Tensor:
    """Codes of `weight` on a fixed grid, columns in order, each making up for the errors of those before it.

    With e = J (w − ŵ) the error of the output is Σ_k D_k (Σ_j≥k R_kj e_j)²: column k of J w is best rounded from
    (J w)_k + Σ_j>k R_kj e_j. These are GPTQ's codes, the Hessian not inverted: Babai's nearest plane (arXiv 2507.18553).

    Args:
        weight: [N, K].
        scale: [N, G], step size of each row's groups of K/G columns; it is not changed.
        factor: R, [K, K], of `hessian_factor`. With a diagonal Hessian the result is round-to-nearest.
        zero: [N, G], zero points of an asymmetric grid.
        block_size: columns that are taken one by one; it does not change the result beyond rounding.

    Returns:
        int8 [N, K].
    """
    smallest, largest = integer_range(bits)
    # Columns of J w are rows here: what is worked on lies together. First J w, then what it is rounded from, then e.
    work = weight.mT.flip(0).to(torch.float64).contiguous()
    columns = len(work)
    per_group = columns // scale.shape[1]
    steps = scale.mT.flip(0).to(torch.float64).contiguous()
    zeros = torch.zeros_like(steps) if zero is None else zero.mT.flip(0).to(torch.float64).contiguous()
    codes = torch.empty_like(work, dtype=torch.int8)
    for start, middle, stop in _by_halves(0, columns, block_size):
        if middle < stop:
            work[start:middle].addmm_(factor[start:middle, middle:stop], work[middle:stop])
            continue
        for k in reversed(range(start, stop)):
            step, offset = steps[k // per_group], zeros[k // per_group]
            wanted = work[k].addmv_(work[k + 1 : stop].mT, factor[k, k + 1 : stop])
            code = (wanted / step).round_().add_(offset).clamp_(smallest, largest)
            codes[k] = code
            torch.sub(weight[:, -1 - k], code.sub_(offset).mul_(step), out=wanted)
    return codes.flip(0).mT.contiguous()


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
