"""Hadamard matrices of every width that the families have."""

import pytest
import torch

from s2q.numerics.hadamard import (
    hadamard,
    hadamard_block,
    hadamard_blocks,
    hadamard_factors,
    hadamard_pair,
    has_hadamard,
)

SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 48, 60, 64, 80, 108, 128, 140)
# Inputs of the released models' linears, and those of the demos.
WIDTHS = (128, 160, 640, 1152, 1536, 1920, 2048, 3072, 5120, 7680, 8192, 8960, 12288, 13824, 15360)


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_orthogonal_and_all_entries_are_signs(size: int) -> None:
    matrix = hadamard(size)
    assert torch.equal(matrix.abs(), torch.ones(size, size, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.mT, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [0, 3, 6, 10, 14, 52, 92])
def test_sizes_without_a_construction_are_refused(size: int) -> None:
    assert not has_hadamard(size)
    with pytest.raises(ValueError, match=f"size {size}"):
        hadamard(size)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_of_the_families_is_mixed_as_a_whole(width: int) -> None:
    n1, n2 = hadamard_factors(width)
    assert n1 * n2 == width
    assert has_hadamard(n1)
    assert has_hadamard(n2)


@pytest.mark.parametrize("width", [1, 2, 7, 18, 24, 30, 46, 160])
def test_the_pair_is_orthogonal_at_any_width(width: int) -> None:
    whole = torch.kron(*hadamard_pair(width))
    assert torch.allclose(whole @ whole.mT, torch.eye(width, dtype=torch.float64))


def test_one_large_channel_is_spread_over_all() -> None:
    x = torch.zeros(160, dtype=torch.float64)
    x[17] = 1.0
    spread = x @ torch.kron(*hadamard_pair(160))
    assert torch.allclose(spread.abs(), torch.full_like(spread, 160**-0.5))


@pytest.mark.parametrize(
    ("columns", "most", "block"), [(7680, 128, 128), (1536, 512, 512), (160, 128, 32), (12, 3, 2), (7, 128, 1)]
)
def test_blocks_are_the_largest_power_of_two_that_fits(columns: int, most: int, block: int) -> None:
    assert hadamard_block(columns, most) == block


@pytest.mark.parametrize("block", [1, 2, 8, 32])
def test_blocks_are_sylvesters_matrix_and_undo_themselves(block: int) -> None:
    x = torch.randn(3, 5, 96, dtype=torch.float64)
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    while len(sylvester) < block:
        sylvester = torch.cat([torch.cat([sylvester, sylvester], 1), torch.cat([sylvester, -sylvester], 1)])
    whole = torch.kron(torch.eye(96 // block, dtype=torch.float64), sylvester) / block**0.5
    torch.testing.assert_close(hadamard_blocks(x, block), x @ whole)
    torch.testing.assert_close(hadamard_blocks(hadamard_blocks(x, block), block), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "block"), [((3, 701, 384), 128), ((2, 64), 64), ((5, 12), 4), ((7, 1), 1), ((0, 8), 8)]
)
def test_sums_are_made_neighbours_first_whatever_is_done_at_a_time(shape, block, dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, mixed, step = x.clone(), x, 1
    while step < block:
        one, other = mixed.reshape(-1, 2, step).unbind(1)
        mixed, step = torch.stack((one + other, one - other), 1), 2 * step
    expected = (mixed * (1 / block**0.5)).reshape(shape)
    made = hadamard_blocks(x, block)
    assert made.dtype == dtype
    assert torch.equal(made, expected)
    assert torch.equal(x, before)
    if x.ndim == 2 and x.numel():
        turned = x.mT.contiguous().mT
        assert torch.equal(hadamard_blocks(turned, block), expected)


def test_blocks_have_their_own_gradient_and_that_has_one() -> None:
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hadamard_blocks(x, 8), x)
    assert torch.autograd.gradgradcheck(lambda x: hadamard_blocks(x, 8), x)
