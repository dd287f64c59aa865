"""Kronecker-factored invertible transforms (FlatQuant, arXiv 2410.09426) and the Cayley map."""

import math

import torch
from torch import Tensor


def kronecker_factors(size: int) -> tuple[int, int]:
    """The pair n1 ≤ n2 with n1 · n2 = `size` and the smallest sum: the cheapest Kronecker transform of that width."""
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    left = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return left, size // left


def kronecker_apply(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x (P1 ⊗ P2) for row vectors, without forming the product: vec(V) (P1 ⊗ P2) = vec(P1ᵀ V P2).

    Args:
        x: [..., K] with K = n1 · n2.
        left: P1, [n1, n1].
        right: P2, [n2, n2].

    Returns:
        [..., K], the dtype of `x`.
    """
    n1, n2 = left.shape[0], right.shape[0]
    folded = x.reshape(-1, n1, n2)
    # P1 as a batch: where gradients are asked for, matmul would otherwise turn all of x around and back.
    return (left.mT.expand(len(folded), -1, -1) @ (folded @ right)).reshape(x.shape)


def cayley(parameter: Tensor, base: Tensor) -> Tensor:
    """An orthogonal matrix near `base`: base · (I − A)⁻¹ (I + A) with A the skew part of `parameter`.

    A zero parameter gives `base` itself, so training starts there and every step stays orthogonal.

    Args:
        parameter: [..., n, n], free.
        base: [..., n, n], orthogonal.
    """
    skew = (parameter - parameter.mT) / 2
    identity = torch.eye(base.shape[-1], dtype=base.dtype, device=base.device)
    return base @ torch.linalg.solve(identity - skew, identity + skew)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A Haar-distributed orthogonal matrix [size, size], float32: QR of a Gaussian with the signs of R fixed."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()
