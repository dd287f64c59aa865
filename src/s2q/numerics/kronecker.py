"""Kronecker-factored invertible transforms and what is learned of their factors (FlatQuant, arXiv 2410.09426)."""

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


def factor_pairs(skew: Tensor, base: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Factors P = U · diag(σ) · Vᵀ and what their inverses cost in this form, P⁻ᵀ = U · diag(1/σ) · Vᵀ; F of them at once.

    U and V are orthogonal, near `base`, by the Cayley map: base · (I − A)⁻¹ (I + A) with A the skew part of `skew`. A skew
    part of zero gives `base` itself, so training starts there and every step stays orthogonal.

    Args:
        skew: of U and V, [F, 2, n, n], free.
        base: [F, 2, n, n], orthogonal; not learned.
        log_sigma: log σ, [F, n].

    Returns:
        P and P⁻ᵀ, [F, n, n] each.
    """
    return _FactorPairs.apply(skew, base, log_sigma)


class _FactorPairs(torch.autograd.Function):
    """One node of autograd's graph: the matrices are small, and the nodes are what takes the time."""

    @staticmethod
    def forward(ctx, skew: Tensor, base: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
        identity = torch.eye(base.shape[-1], dtype=base.dtype, device=base.device)
        inverse = torch.linalg.inv(identity - (skew - skew.mT) / 2)
        # (I − A)⁻¹ (I + A) = (I − A)⁻¹ (2 I − (I − A))
        u, v = (base @ (2 * inverse - identity)).unbind(1)
        sigma = log_sigma.exp().unsqueeze(-2)
        ctx.save_for_backward(inverse, base, u, v, sigma)
        return (u * sigma) @ v.mT, (u / sigma) @ v.mT

    @staticmethod
    def backward(ctx, gradient: Tensor, gradient_inverse: Tensor):
        inverse, base, u, v, sigma = ctx.saved_tensors
        scaled, divided = (gradient @ v) * sigma, (gradient_inverse @ v) / sigma
        to_u = scaled + divided
        to_v = gradient.mT @ (u * sigma) + gradient_inverse.mT @ (u / sigma)
        # With Q = 2 (I − A)⁻¹ − I, dQ = 2 (I − A)⁻¹ dA (I − A)⁻¹.
        to_skew = inverse.mT @ (base.mT @ torch.stack([to_u, to_v], 1)) @ inverse.mT
        return to_skew - to_skew.mT, None, (u * (scaled - divided)).sum(-2)


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A Haar-distributed orthogonal matrix [size, size], float32: QR of a Gaussian with the signs of R fixed."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()
