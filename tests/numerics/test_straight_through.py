"""Learning: values of the quantizer, gradients of rounding that is passed straight through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2q.numerics.quantizer import affine_grid, dequantize, grid, integer_range, per_value, quantize, row_scale
from s2q.numerics.straight_through import fake_quantize, fake_quantize_rows

few = settings(max_examples=30, deadline=None)
any_bits = st.integers(2, 8)
seeds = st.integers(0, 10_000)


def rows(seed: int, shape: tuple[int, ...] = (5, 13)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 7 - 3)


def spelt_out(x: Tensor, scale: Tensor, bits: int, zero: Tensor | None) -> Tensor:
    """Rounding whose gradient is autograd's own."""
    scale, zero = per_value(scale, x), per_value(zero, x)
    offset = 0 if zero is None else zero
    ratio = x / scale
    through = (ratio + (ratio.round() - ratio).detach() + offset).clamp(*integer_range(bits)) - offset
    return through * scale


def assert_same_gradients(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_rows_of_zeros_become_zeros_and_not_nan() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    clip = torch.ones(1, requires_grad=True)
    assert torch.equal(fake_quantize(x, row_scale(x.detach(), 4), 4), x)
    for symmetric in (True, False):
        values = fake_quantize_rows(x, 4, symmetric, clip)
        assert torch.equal(values, x)
        for gradient in torch.autograd.grad(values.sum(), (x, clip)):
            assert bool(gradient.isfinite().all())


@few
@given(seeds, any_bits, st.floats(0.2, 1.0), st.booleans(), st.sampled_from([1, 3]))
def test_what_is_learned_on_is_bit_for_bit_what_is_run(
    seed: int, bits: int, clip: float, symmetric: bool, groups: int
) -> None:
    x = rows(seed, (5, 12))
    scale, zero = grid(x, bits, symmetric, clip, groups)
    run = dequantize(quantize(x, scale, bits, zero), scale, zero)
    assert torch.equal(fake_quantize(x, scale, bits, zero), run)
    assert torch.equal(fake_quantize_rows(x, bits, symmetric, clip, groups), run)


def test_input_that_is_not_clipped_has_the_gradient_of_the_identity() -> None:
    x = torch.tensor([[-20.0, -8.4, -1.3, 0.2, 3.4, 7.4, 7.6, 20.0]], requires_grad=True)
    fake_quantize(x, torch.ones(1, 1), 4).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0]]


def test_gradient_reaches_the_step_so_that_clipping_can_be_learned() -> None:
    x = torch.tensor([[-20.0, -1.25, 0.25, 20.0]])
    scale = torch.ones(1, 1, requires_grad=True)
    values = fake_quantize(x, scale, 4)
    # d(code · Δ)/dΔ is code − x/Δ inside the range, and the end of the range where x is clipped.
    for index, expected in enumerate((-8.0, -1 + 1.25, 0 - 0.25, 7.0)):
        (gradient,) = torch.autograd.grad(values[0, index], scale, retain_graph=True)
        assert gradient.item() == pytest.approx(expected)


@few
@given(seeds, st.booleans())
def test_gradients_are_those_of_straight_through_rounding(seed: int, symmetric: bool) -> None:
    x, bits = rows(seed, (3, 8)).requires_grad_(), 4
    scale, zero = (row_scale(x.detach(), bits, 0.7), None) if symmetric else affine_grid(x.detach(), bits, 0.7)
    scale.requires_grad_()
    weight = rows(seed + 1, (3, 8))
    expected = torch.autograd.grad((spelt_out(x, scale, bits, zero) * weight).sum(), (x, scale))
    got = torch.autograd.grad((fake_quantize(x, scale, bits, zero) * weight).sum(), (x, scale))
    assert_same_gradients(got, expected)


@few
@given(seeds, st.booleans(), st.sampled_from([1, 2, 4]), st.sampled_from(["one", "row", "fixed"]), st.booleans())
def test_gradients_pass_through_the_ends_of_the_range(
    seed: int, symmetric: bool, groups: int, clipping: str, one_sided: bool
) -> None:
    x, bits = rows(seed, (6, 16)), 4
    x = (x.abs() if one_sided else x).requires_grad_()
    clip: Tensor | float = 0.7
    if clipping != "fixed":
        clip = torch.full((1,) if clipping == "one" else (6, 1), 0.7, requires_grad=True)
    wanted = (x,) if clipping == "fixed" else (x, clip)
    weight = rows(seed + 1, (6, 16))
    scale, zero = grid(x, bits, symmetric, clip, groups)
    expected = spelt_out(x, scale, bits, zero)
    got = fake_quantize_rows(x, bits, symmetric, clip, groups)
    assert_same_gradients(
        torch.autograd.grad((got * weight).sum(), wanted), torch.autograd.grad((expected * weight).sum(), wanted)
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_equal_largest_values_share_the_gradient_of_the_range(symmetric: bool) -> None:
    x = torch.tensor([[3.0, 3.0, -1.0, 0.2]], requires_grad=True)
    weight = torch.tensor([[0.3, -0.8, 0.5, 1.1]])
    scale, zero = grid(x, 4, symmetric)
    expected = torch.autograd.grad((spelt_out(x, scale, 4, zero) * weight).sum(), (x,))
    assert_same_gradients(torch.autograd.grad((fake_quantize_rows(x, 4, symmetric) * weight).sum(), (x,)), expected)


@pytest.mark.parametrize("asked", ["x", "clip"])
def test_what_is_not_learned_gets_no_gradient(asked: str) -> None:
    x, clip = rows(0), torch.full((1,), 0.9)
    (x if asked == "x" else clip).requires_grad_()
    fake_quantize_rows(x, 4, False, clip).sum().backward()
    assert (x.grad is None) == (asked == "clip")
    assert (clip.grad is None) == (asked == "x")
