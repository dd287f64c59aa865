"""Hadamard matrices: Sylvester's doubling over Paley's constructions, which covers the widths of video transformers; and blocks
of Sylvester's alone, which need additions only."""

import math
from functools import cache

import torch
from torch import Tensor

from s2q.numerics.parts import height


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def has_hadamard(size: int) -> bool:
    """Whether `hadamard` can make a matrix of this size (powers of two; 12, 20, 24, 28, 36, 40, 60, 108, 140, …)."""
    if size in (1, 2):
        return True
    if size < 1 or size % 4:
        return False
    return _first_kind(size) or _second_kind(size) or has_hadamard(size // 2)


def _first_kind(size: int) -> bool:
    return size % 4 == 0 and _is_prime(size - 1)


def _second_kind(size: int) -> bool:
    return size % 4 == 0 and _is_prime(size // 2 - 1) and size // 2 % 4 == 2


@cache
def hadamard(size: int) -> Tensor:
    """A matrix of ±1 with orthogonal rows, float64 [size, size]; H Hᵀ = size · I.

    Raises:
        ValueError: no construction is known here for this size.
    """
    if not has_hadamard(size):
        raise ValueError(f"no Hadamard matrix of size {size} can be made here: sizes are 1, 2, and multiples of 4")
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _first_kind(size):
        return _paley_first(size - 1)
    if _second_kind(size):
        return _paley_second(size // 2 - 1)
    half = hadamard(size // 2)
    return torch.cat([torch.cat([half, half], 1), torch.cat([half, -half], 1)])


def _residues(q: int) -> Tensor:
    """Jacobsthal matrix: the quadratic character of i − j modulo the prime q, [q, q]."""
    squares = {(i * i) % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float64)
    index = torch.arange(q)
    return character[(index[:, None] - index[None, :]) % q]


def _bordered(q: int, corner: Tensor) -> Tensor:
    out = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    out[0, 1:], out[1:, 0], out[1:, 1:] = 1, corner, _residues(q)
    return out


def _paley_first(q: int) -> Tensor:
    """Size q + 1 for a prime q ≡ 3 (mod 4): I + S with the skew-symmetric bordered Jacobsthal matrix S."""
    return _bordered(q, torch.tensor(-1.0, dtype=torch.float64)) + torch.eye(q + 1, dtype=torch.float64)


def _paley_second(q: int) -> Tensor:
    """Size 2 (q + 1) for a prime q ≡ 1 (mod 4), from the symmetric bordered Jacobsthal matrix."""
    core = _bordered(q, torch.tensor(1.0, dtype=torch.float64))
    ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    fill = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(core, ones) + torch.kron(torch.eye(q + 1, dtype=torch.float64), fill)


def hadamard_factors(columns: int) -> tuple[int, int]:
    """n1, n2 with n1 · n2 = `columns` whose Hadamard matrices' Kronecker product is one of the whole width.

    The pair with the smallest sum is the cheapest. Where the width has no such pair, n1 is what is left beside the
    largest n2 that has a matrix, and only stretches of n2 channels are mixed: see `hadamard_pair`.
    """
    divisors = [n for n in range(1, columns + 1) if columns % n == 0]
    both = [n for n in divisors if has_hadamard(n) and has_hadamard(columns // n)]
    if both:
        left = min(both, key=lambda n: (n + columns // n, n))
        return left, columns // left
    right = max(n for n in divisors if has_hadamard(n))
    return columns // right, right


def hadamard_pair(columns: int) -> tuple[Tensor, Tensor]:
    """The orthogonal factors of `hadamard_factors`: float64 [n1, n1] and [n2, n2]; n1 without a matrix is the identity."""
    n1, n2 = hadamard_factors(columns)
    left = hadamard(n1) / math.sqrt(n1) if has_hadamard(n1) else torch.eye(n1, dtype=torch.float64)
    return left, hadamard(n2) / math.sqrt(n2)


def hadamard_block(columns: int, most: int) -> int:
    """The largest power of two that divides `columns`, within `most`."""
    return math.gcd(columns, 1 << most.bit_length() - 1)


def hadamard_blocks(x: Tensor, block: int) -> Tensor:
    """x (I ⊗ H) / √block with Sylvester's H: stretches of `block` channels are mixed, log₂(block) additions a value.

    Sums are made in one order, neighbours first, and the product with 1/√block comes last, so that every implementation
    that follows it gives the same bits. The map is its own inverse.

    Args:
        x: [..., K], floating point.
        block: a power of two that divides K.

    Returns:
        [..., K], the dtype of `x`.
    """
    return _Mixed.apply(x, block)


class _Mixed(torch.autograd.Function):
    """`hadamard_blocks`, whose matrix is symmetric: its gradient is the map itself."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.block = block
        flat = x.reshape(-1, block)
        out = torch.empty_like(flat, memory_format=torch.contiguous_format)
        # As columns, so that all sums are of long rows.
        for some, mixed in zip(flat.split(height(flat)), out.split(height(flat)), strict=True):
            now = some.mT.contiguous()
            after = torch.empty_like(now)
            for stage in range(block.bit_length() - 1):
                shape = (block >> stage + 1, 2, (1 << stage) * len(some))
                (one, other), (total, difference) = now.view(shape).unbind(1), after.view(shape).unbind(1)
                torch.add(one, other, out=total)
                torch.sub(one, other, out=difference)
                now, after = after, now
            torch.mul(now, 1 / math.sqrt(block), out=after)
            mixed.copy_(after.mT)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, gradient):
        return hadamard_blocks(gradient, ctx.block), None
