"""Eq. 1: the grid, its step, its groups and its zero points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.numerics.quantizer import (
    affine_grid,
    dequantize,
    group_count,
    integer_range,
    quantize,
    row_scale,
)

few = settings(max_examples=30, deadline=None)
any_bits = st.integers(2, 8)
seeds = st.integers(0, 10_000)


def rows(seed: int, shape: tuple[int, ...] = (5, 13)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 7 - 3)


@pytest.mark.parametrize(("bits", "expected"), [(2, (-2, 1)), (4, (-8, 7)), (6, (-32, 31)), (8, (-128, 127))])
def test_range_is_that_of_a_signed_integer(bits: int, expected: tuple[int, int]) -> None:
    assert integer_range(bits) == expected


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_that_int8_cannot_hold_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=r"2\.\.8"):
        integer_range(bits)


def test_step_is_that_of_equation_1() -> None:
    x = torch.tensor([[1.0, -3.5, 2.0], [0.5, 0.25, -0.125]])
    assert torch.equal(row_scale(x, 4), torch.tensor([[3.5 / 7], [0.5 / 7]]))
    assert torch.allclose(row_scale(x, 4, clip=0.5), torch.tensor([[1.75 / 7], [0.25 / 7]]))


@few
@given(seeds, any_bits)
def test_unclipped_rows_lose_at_most_half_a_step(seed: int, bits: int) -> None:
    x = rows(seed)
    scale = row_scale(x, bits)
    error = (quantize(x, scale, bits) * scale - x).abs()
    assert bool((error <= scale * (0.5 + 1e-5)).all())


def test_rows_of_zeros_become_zeros_and_not_nan() -> None:
    x = torch.zeros(2, 4)
    scale = row_scale(x, 4)
    assert torch.equal(quantize(x, scale, 4), torch.zeros(2, 4, dtype=torch.int8))


def test_rows_far_out_of_range_stop_at_the_ends_of_the_grid() -> None:
    codes = quantize(torch.tensor([[1e9, -1e9, 0.4]]), torch.ones(1, 1), 4)
    assert codes.tolist() == [[7, -8, 0]]


def test_halves_round_to_even() -> None:
    codes = quantize(torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5]]), torch.ones(1, 1), 4)
    assert codes.tolist() == [[0, 2, 2, 0, -2]]


@few
@given(seeds, any_bits)
def test_quantizing_twice_changes_nothing(seed: int, bits: int) -> None:
    x = rows(seed)
    scale = row_scale(x, bits)
    once = dequantize(quantize(x, scale, bits), scale)
    assert torch.equal(quantize(once, scale, bits), quantize(x, scale, bits))


def test_quantize_leaves_the_callers_tensor_alone() -> None:
    x = rows(1)
    before = x.clone()
    quantize(x, torch.ones(1, 1), 4)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("columns", "group_size", "groups"), [(128, None, 1), (160, 64, 4), (640, 64, 10), (7, 4, 7), (96, 128, 1)]
)
def test_a_row_is_cut_into_the_longest_equal_groups_allowed(columns: int, group_size: int | None, groups: int) -> None:
    assert group_count(columns, group_size) == groups
    assert columns % groups == 0
    assert group_size is None or columns // groups <= group_size


@few
@given(seeds, any_bits, st.sampled_from([1, 2, 6]))
def test_the_affine_grid_holds_all_of_its_range_and_zero_exactly(seed: int, bits: int, groups: int) -> None:
    x = rows(seed, (5, 12)) + 10.0 ** (seed % 7 - 3)
    scale, zero = affine_grid(x, bits, groups=groups)
    smallest, largest = integer_range(bits)
    assert bool((zero == zero.round()).all())
    assert smallest <= float(zero.min()) <= float(zero.max()) <= largest
    back = dequantize(quantize(x, scale, bits, zero), scale, zero)
    # The zero point is rounded too: one end of the range may be missed by half a step more.
    assert bool(((back - x).abs() <= scale.repeat_interleave(12 // groups, -1) * (1 + 1e-4)).all())
    nothing = torch.zeros_like(x)
    assert torch.equal(dequantize(quantize(nothing, scale, bits, zero), scale, zero), nothing)


def test_groups_are_rows_of_their_own() -> None:
    x = rows(3, (4, 12))
    scale, zero = affine_grid(x, 4, groups=3)
    apart, own = affine_grid(x.reshape(12, 4), 4)
    assert torch.equal(scale.reshape(-1, 1), apart)
    assert torch.equal(quantize(x, scale, 4, zero), quantize(x.reshape(12, 4), apart, 4, own).reshape(4, 12))


def test_half_a_range_is_used_twice_as_well_by_an_affine_grid() -> None:
    x = rows(3, (5, 200)).abs()
    symmetric, (scale, zero) = row_scale(x, 6), affine_grid(x, 6)
    assert float((dequantize(quantize(x, scale, 6, zero), scale, zero) - x).norm()) < 0.7 * float(
        (quantize(x, symmetric, 6) * symmetric - x).norm()
    )
