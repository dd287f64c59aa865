"""Kronecker transforms against the full product, and the Cayley map's orthogonality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.numerics.kronecker import cayley, kronecker_apply, kronecker_factors, random_orthogonal

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


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_cayley_stays_orthogonal_however_far_it_is_trained(size: int) -> None:
    base = random_orthogonal(size, torch.Generator().manual_seed(0)).double()
    for reach in (0.1, 1.0, 30.0):
        matrix = cayley(normal(size, size) * reach, base)
        assert torch.allclose(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64), atol=1e-6)


def test_cayley_of_nothing_learned_is_the_base() -> None:
    base = random_orthogonal(6, torch.Generator().manual_seed(0))
    assert torch.equal(cayley(torch.zeros(6, 6), base), base)


def test_rotations_are_orthogonal_and_follow_the_seed() -> None:
    one, again, other = (random_orthogonal(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.allclose(one @ one.mT, torch.eye(16), atol=1e-5)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
