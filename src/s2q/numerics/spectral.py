"""Spectral norms of Gram matrices."""

import torch
from torch import Tensor

# Up to this width an exact eigenvalue decomposition is cheaper than iterating.
EXACT_WIDTH = 256


def gram_spectral_norm(x: Tensor, tolerance: float = 1e-6, most: int = 500) -> Tensor:
    """‖xᵀx‖₂, the largest eigenvalue of the Gram matrix, which is the largest singular value of `x` squared.

    Args:
        x: [..., n, d], n tokens of d channels.
        tolerance: relative change of the estimate at which the power iteration stops (d > EXACT_WIDTH only).
        most: iterations at the most.

    Returns:
        float64 [...].
    """
    x = x.to(torch.float32)
    if x.shape[-2] < x.shape[-1]:
        x = x.mT  # the non-zero eigenvalues of xᵀx and xxᵀ are the same
    gram = x.mT @ x
    if gram.shape[-1] <= EXACT_WIDTH:
        return torch.linalg.eigvalsh(gram.double())[..., -1].clamp(min=0)
    largest = [_power_iteration(each, tolerance, most) for each in gram.reshape(-1, *gram.shape[-2:])]
    return torch.tensor(largest, dtype=torch.float64).reshape(gram.shape[:-2])


def _power_iteration(gram: Tensor, tolerance: float, most: int) -> float:
    """Largest eigenvalue of one positive semi-definite matrix [d, d]."""
    # A fixed start keeps the result deterministic; the row sums lean towards the dominant direction already.
    vector = gram.abs().sum(dim=1)
    estimate = 0.0
    for _ in range(most):
        vector = vector / torch.linalg.vector_norm(vector).clamp(min=1e-30)
        image = gram @ vector
        previous, estimate = estimate, float(vector @ image)
        if abs(estimate - previous) <= tolerance * abs(estimate):
            break
        vector = image
    return estimate
