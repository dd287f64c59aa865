"""GPTQ (arXiv 2210.17323): round a weight so that the error of its output, not of itself, is small."""

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


def gptq_round(
    weight: Tensor,
    scale: Tensor,
    hessian: Tensor,
    bits: int,
    zero: Tensor | None = None,
    damp: float = 0.01,
    block_size: int = 128,
) -> Tensor:
    """Codes of `weight` on a fixed grid, columns in order, each error spread over the columns to come.

    Args:
        weight: [N, K].
        scale: [N, G], step size of each row's groups of K/G columns; it is not changed.
        zero: [N, G], zero points of an asymmetric grid.
        hessian: [K, K], see `accumulate_hessian`. With a diagonal one the result is round-to-nearest.
        damp: share of the mean diagonal that is added to the diagonal.
        block_size: columns whose errors are spread lazily together; it does not change the result beyond rounding.

    Returns:
        int8 [N, K].

    Raises:
        ValueError: the Hessian is not finite, or not positive definite even with a thousandfold damp.
    """
    if not torch.isfinite(hessian).all():
        raise ValueError("the GPTQ Hessian has entries that are not finite: an input of this layer overflowed")
    smallest, largest = integer_range(bits)
    work = weight.to(torch.float64, copy=True)
    per_group = weight.shape[1] // scale.shape[1]
    steps = scale.to(torch.float64)
    zeros = torch.zeros_like(steps) if zero is None else zero.to(torch.float64)
    inverse = _inverse_cholesky(hessian.to(torch.float64), damp)
    codes = torch.empty_like(work)
    columns = work.shape[1]
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty_like(work[:, start:stop])
        for k in range(start, stop):
            group = slice(k // per_group, k // per_group + 1)
            step, offset = steps[:, group], zeros[:, group]
            code = (work[:, k : k + 1] / step).round_().add_(offset).clamp_(smallest, largest)
            codes[:, k : k + 1] = code
            error = (work[:, k : k + 1] - (code - offset) * step) / inverse[k, k]
            work[:, k + 1 : stop] -= error * inverse[k, k + 1 : stop]
            errors[:, k - start : k - start + 1] = error
        work[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes.to(torch.int8)


def _inverse_cholesky(hessian: Tensor, damp: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped Hessian; inputs that are always zero are decoupled."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
    diagonal[diagonal == 0] = mean
    for factor in (1, 10, 100, 1000):
        damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (factor * damp * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
    raise ValueError(f"the GPTQ Hessian is not positive definite even with {1000 * damp:g} of its mean diagonal added")
