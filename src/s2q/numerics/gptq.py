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
    # Columns of the weight are rows here: what is worked on lies together.
    work = weight.mT.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    columns = len(work)
    per_group = columns // scale.shape[1]
    steps = scale.mT.to(torch.float64).contiguous()
    zeros = torch.zeros_like(steps) if zero is None else zero.mT.to(torch.float64).contiguous()
    inverse = _inverse_cholesky(hessian, damp)
    codes = torch.empty_like(work, dtype=torch.int8)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty_like(work[start:stop])
        for k in range(start, stop):
            step, offset = steps[k // per_group], zeros[k // per_group]
            code = (work[k] / step).round_().add_(offset).clamp_(smallest, largest)
            codes[k] = code
            error = errors[k - start]
            torch.div(work[k] - code.sub_(offset).mul_(step), inverse[k, k], out=error)
            work[k + 1 : stop].sub_(inverse[k, k + 1 : stop, None] * error)
        work[stop:].sub_(inverse[start:stop, stop:].mT @ errors)
    return codes.mT.contiguous()


def _inverse_cholesky(hessian: Tensor, damp: float) -> Tensor:
    """Upper Cholesky factor U of the inverse of the damped Hessian, UᵀU = H⁻¹; inputs that are always zero are decoupled.

    With J the matrix that turns the order round, J H J = L Lᵀ makes H⁻¹ = (J L⁻¹ J)ᵀ (J L⁻¹ J): one factorization.
    """
    mean = hessian.diagonal().to(torch.float64).mean().clamp(min=torch.finfo(torch.float64).tiny)
    for factor in (1, 10, 100, 1000):
        damped = hessian.flip(0, 1).to(torch.float64)
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = mean
        diagonal += factor * damp * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            _invert_lower(lower)
            return lower.flip(0, 1)
    raise ValueError(f"the GPTQ Hessian is not positive definite even with {1000 * damp:g} of its mean diagonal added")


def _invert_lower(matrix: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: nearly all of it is matrix products."""
    size = len(matrix)
    if size <= 128:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=False))
        return
    first, second = slice(0, size // 2), slice(size // 2, None)
    _invert_lower(matrix[first, first])
    _invert_lower(matrix[second, second])
    matrix[second, first] = -(matrix[second, second] @ (matrix[second, first] @ matrix[first, first]))
