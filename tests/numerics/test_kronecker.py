"""Kronecker transforms against the full product, and the Cayley map's orthogonality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.numerics.kronecker import factor_pairs, kronecker_apply, kronecker_factors, random_orthogonal

few = settings(max_examples=40, deadline=None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(st.integers(1, 4000))
def test_no_other_pair_of_factors_has_a_smaller_sum(size: int) -> None:
    n1, n2 = kronecker_factors(size)
    assert n1 * n2 == size
    assert n1 <= n2
    assert n1 + n2 == min(n + size // n for n in range(1, size + 1) if size % n == 0)


@pytest.mark.parametrize("size", [0, -4])
def test_widths_that_do_not_exist_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        kronecker_factors(size)


@pytest.mark.parametrize(("n1", "n2"), [(1, 5), (3, 4), (4, 3), (2, 2)])
def test_applying_equals_the_full_product(n1: int, n2: int) -> None:
    left, right, x = normal(n1, n1), normal(n2, n2, seed=1), normal(2, 3, n1 * n2, seed=2)
    assert torch.allclose(kronecker_apply(x, left, right), x @ torch.kron(left, right))


def test_inverse_transpose_on_the_weight_undoes_the_transform_of_the_input() -> None:
    left, right, x, weight = normal(3, 3), normal(4, 4, seed=1), normal(7, 12, seed=2), normal(5, 12, seed=3)
    inverses = [torch.linalg.inv(factor).mT for factor in (left, right)]
    transformed = kronecker_apply(x, left, right) @ kronecker_apply(weight, *inverses).mT
    assert torch.allclose(transformed, x @ weight.mT)


def bases(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([random_orthogonal(size, generator) for _ in range(2)]).double().unsqueeze(0)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_factors_without_scales_stay_orthogonal_however_far_they_are_trained(size: int) -> None:
    for reach in (0.1, 1.0, 30.0):
        matrix, other = factor_pairs(normal(1, 2, size, size) * reach, bases(size), torch.zeros(1, size).double())
        assert torch.allclose(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64), atol=1e-6)
        assert torch.equal(matrix, other)


def test_what_is_not_trained_yet_is_the_base() -> None:
    base = bases(6)
    u, v = base[0]
    made = factor_pairs(torch.zeros_like(base), base, torch.zeros(1, 6).double())[0][0]
    torch.testing.assert_close(made, u @ v.mT, rtol=0, atol=1e-15)


def spelt_out(skew: torch.Tensor, base: torch.Tensor, log_sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors by their definition, with autograd's own gradients."""
    a, identity = (skew - skew.mT) / 2, torch.eye(base.shape[-1], dtype=base.dtype)
    u, v = (base @ torch.linalg.solve(identity - a, identity + a)).unbind(1)
    return u @ log_sigma.exp().diag_embed() @ v.mT, u @ (-log_sigma).exp().diag_embed() @ v.mT


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_factors_and_their_gradients_are_those_of_the_definition(size: int) -> None:
    base = torch.cat([bases(size), bases(size).flip(1), bases(size).mT])
    given = (normal(3, 2, size, size).requires_grad_(), normal(3, size, seed=1).requires_grad_())
    above = (normal(3, size, size, seed=2), normal(3, size, size, seed=3))
    ours, theirs = (of(given[0], base, given[1]) for of in (factor_pairs, spelt_out))
    ours_back, theirs_back = (torch.autograd.grad(found, given, above) for found in (ours, theirs))
    for one, other in zip((*ours, *ours_back), (*theirs, *theirs_back), strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_the_second_of_a_pair_is_the_inverse_transposed() -> None:
    (matrix,), (other,) = factor_pairs(normal(1, 2, 9, 9), bases(9), normal(1, 9, seed=1))
    assert torch.allclose(torch.linalg.inv(matrix).mT, other)


def test_rotations_are_orthogonal_and_follow_the_seed() -> None:
    one, again, other = (random_orthogonal(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.allclose(one @ one.mT, torch.eye(16), atol=1e-5)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
