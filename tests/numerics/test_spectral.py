"""The spectral norm of a Gram matrix, exact and iterated."""

import pytest
import torch

from s2q.numerics.spectral import EXACT_WIDTH, gram_spectral_norm


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (1, 5), (300, EXACT_WIDTH), (400, 300), (300, 900)])
def test_equals_the_square_of_the_largest_singular_value(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = float(torch.linalg.matrix_norm(x.double(), ord=2) ** 2)
    assert gram_spectral_norm(x) == pytest.approx(expected, rel=2e-3)


def test_one_dominant_direction_is_found_exactly_in_wide_matrices() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 300, generator=generator)
    x += 5 * torch.randn(500, 1, generator=generator) @ torch.randn(1, 300, generator=generator)
    expected = float(torch.linalg.matrix_norm(x.double(), ord=2) ** 2)
    assert gram_spectral_norm(x) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [8, 300])
def test_zeros_have_norm_zero(width: int) -> None:
    assert gram_spectral_norm(torch.zeros(400, width)) == 0


@pytest.mark.parametrize("width", [8, 300])
def test_same_input_gives_the_same_bits(width: int) -> None:
    x = torch.randn(400, width, generator=torch.Generator().manual_seed(0))
    assert gram_spectral_norm(x) == gram_spectral_norm(x.clone())


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((400, 8), 200.0, dtype=torch.float16)
    assert gram_spectral_norm(x) == pytest.approx(400 * 8 * 200.0**2)
