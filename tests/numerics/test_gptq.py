"""GPTQ against round-to-nearest, where it must agree and where it must win."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.numerics.gptq import (
    STEPS_TRIED,
    HessianFactor,
    accumulate_hessian,
    gptq_round,
    gptq_search,
    hessian_factor,
)
from s2q.numerics.quantizer import affine_grid, dequantize, grid, integer_range, quantize, row_scale


def problem(seed: int = 0, rows: int = 12, columns: int = 40, samples: int = 200) -> tuple[torch.Tensor, ...]:
    """Weight [N, K] and inputs [M, K] whose channels are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    x = torch.randn(samples, columns // 4, generator=generator) @ mixing
    x = x + 0.1 * torch.randn(samples, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), x


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    hessian = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    accumulate_hessian(hessian, x)
    return hessian


def factor_of(x: torch.Tensor, by_importance: bool = False) -> HessianFactor:
    return hessian_factor(hessian_of(x), by_importance=by_importance)


def output_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - codes * scale).mT).square().sum())


def test_hessian_is_twice_the_gram_matrix_whatever_the_batches() -> None:
    _, x = problem()
    expected = 2 * x.double().mT @ x.double()
    pieces = torch.zeros_like(expected)
    for piece in x.split(37):
        accumulate_hessian(pieces, piece)
    assert torch.allclose(pieces, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_independent_inputs_give_round_to_nearest(bits: int) -> None:
    weight, _ = problem()
    scale = row_scale(weight, bits)
    hessian = torch.diag(torch.rand(weight.shape[1], dtype=torch.float64) + 0.1)
    assert torch.equal(
        gptq_round(weight, scale, hessian_factor(hessian), bits), quantize(weight.double(), scale.double(), bits)
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([3, 4, 6]))
def test_correlated_inputs_never_come_out_worse_than_nearest(seed: int, bits: int) -> None:
    weight, x = problem(seed)
    scale = row_scale(weight, bits)
    nearest = output_error(weight, quantize(weight, scale, bits), scale, x)
    assert output_error(weight, gptq_round(weight, scale, factor_of(x), bits), scale, x) < nearest


@pytest.mark.parametrize("block_size", [1, 7, 16, 40, 999])
def test_block_size_does_not_change_the_codes(block_size: int) -> None:
    weight, x = problem()
    scale = row_scale(weight, 4)
    codes = gptq_round(weight, scale, factor_of(x), 4, block_size=block_size)
    assert torch.equal(codes, gptq_round(weight, scale, factor_of(x), 4))


def test_channels_that_are_always_zero_do_no_harm() -> None:
    weight, x = problem()
    x[:, [3, 17]] = 0
    scale = row_scale(weight, 4)
    codes = gptq_round(weight, scale, factor_of(x), 4)
    assert torch.equal(codes[:, [3, 17]], quantize(weight, scale, 4)[:, [3, 17]])
    nearest = output_error(weight, quantize(weight, scale, 4), scale, x)
    assert output_error(weight, codes, scale, x) < nearest


def test_inputs_that_are_all_zero_give_nearest_instead_of_an_error() -> None:
    weight, _ = problem()
    scale = row_scale(weight, 4)
    hessian = torch.zeros(40, 40, dtype=torch.float64)
    assert torch.equal(
        gptq_round(weight, scale, hessian_factor(hessian), 4), quantize(weight.double(), scale.double(), 4)
    )


def test_fewer_samples_than_channels_are_enough() -> None:
    weight, x = problem(samples=3)
    codes = gptq_round(weight, row_scale(weight, 4), factor_of(x), 4)
    smallest, largest = integer_range(4)
    assert codes.dtype == torch.int8
    assert smallest <= int(codes.min()) <= int(codes.max()) <= largest


def test_inputs_and_weights_of_the_caller_are_left_alone() -> None:
    weight, x = problem()
    hessian = hessian_of(x)
    kept = weight.clone(), hessian.clone()
    gptq_round(weight, row_scale(weight, 4), hessian_factor(hessian), 4)
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overflow_is_an_error_and_not_noise(value: float) -> None:
    hessian = hessian_of(problem()[1])
    hessian[2, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        hessian_factor(hessian)


def test_a_hessian_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="positive definite"):
        hessian_factor(-torch.ones(40, 40, dtype=torch.float64) * 9)


def test_a_diagonal_hessian_is_rounding_to_nearest_on_grouped_affine_grids_too() -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    scale, zero = affine_grid(weight, 4, groups=3)
    codes = gptq_round(weight, scale, hessian_factor(torch.eye(24)), 4, zero)
    assert torch.equal(codes, quantize(weight.double(), scale.double(), 4, zero.double()))


def test_it_beats_nearest_on_grouped_affine_grids() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mix = torch.randn(6, 24, generator=generator), torch.randn(24, 24, generator=generator)
    x = torch.randn(300, 24, generator=generator) @ mix
    scale, zero = affine_grid(weight, 3, groups=3)
    errors = [
        float((x @ (dequantize(codes, scale, zero) - weight).mT).square().sum())
        for codes in (gptq_round(weight, scale, factor_of(x), 3, zero), quantize(weight, scale, 3, zero))
    ]
    assert errors[0] < 0.8 * errors[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 4]), st.sampled_from([None, 3]))
def test_the_codes_are_those_of_the_papers_algorithm(seed: int, bits: int, samples: int | None) -> None:
    """Algorithm 1 as printed: errors spread over the columns to come by the Cholesky factor of the inverse Hessian."""
    weight, x = problem(seed, samples=samples or 200)
    scale, hessian = row_scale(weight, bits).double(), hessian_of(x)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    work, expected = weight.double(), torch.empty_like(weight, dtype=torch.int8)
    for k in range(40):
        expected[:, k] = quantize(work[:, k : k + 1], scale, bits)[:, 0]
        error = (work[:, k] - expected[:, k] * scale[:, 0]) / inverse[k, k]
        work[:, k:] -= error.unsqueeze(1) * inverse[k, k:]
    assert torch.equal(gptq_round(weight, scale, factor_of(x), bits), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([None, 5]))
def test_columns_by_importance_are_the_plain_order_of_a_weight_whose_columns_were_sorted(
    seed: int, groups: int | None
) -> None:
    weight, x = problem(seed)
    x = x * torch.rand(40, generator=torch.Generator().manual_seed(seed))
    scale, zero = affine_grid(weight, 4, groups=groups or 1)
    order = hessian_of(x).diagonal().argsort(descending=True)
    codes = gptq_round(weight, scale, factor_of(x, by_importance=True), 4, zero)
    # Sorted, a column keeps the step of the group that it was in: as many groups as columns.
    each, each_zero = (values.repeat_interleave(40 // values.shape[1], dim=1)[:, order] for values in (scale, zero))
    assert torch.equal(codes[:, order], gptq_round(weight[:, order], each, factor_of(x[:, order]), 4, each_zero))


def test_important_columns_first_leave_less_of_an_error() -> None:
    errors = {False: 0.0, True: 0.0}
    for seed in range(8):
        weight, x = problem(seed)
        x = x * torch.logspace(-1, 0, 40)  # the last are the largest: the worst that the plain order can meet
        scale = row_scale(weight, 4)
        for by_importance in errors:
            codes = gptq_round(weight, scale, factor_of(x, by_importance), 4)
            errors[by_importance] += output_error(weight, codes, scale, x)
    assert errors[True] < 0.8 * errors[False]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]), st.booleans(), st.sampled_from([1, 5]))
def test_no_row_is_worse_for_having_searched_its_steps(seed: int, bits: int, symmetric: bool, groups: int) -> None:
    weight, x = problem(seed)
    scale, zero = grid(weight, bits, symmetric, groups=groups)
    factor = factor_of(x)
    hessian = hessian_of(x)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(40)

    def row_errors(codes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        error = weight.double() - dequantize(codes, steps.double(), None if zero is None else zero.double())
        return ((error @ hessian) * error).sum(1)

    codes, steps = gptq_search(weight, scale, factor, bits, zero)
    tried = [row_errors(gptq_round(weight, scale * share, factor, bits, zero), scale * share) for share in STEPS_TRIED]
    least = torch.stack(tried).amin(0)
    assert torch.allclose(row_errors(codes, steps), least, rtol=1e-6)
    assert torch.equal(codes, gptq_round(weight, steps, factor, bits, zero)), "steps and codes belong together"
    shares = (steps / scale).mean(1)
    assert all(any(abs(float(share) - tried) < 1e-5 for tried in STEPS_TRIED) for share in shares)


def test_what_it_worked_on_is_freed_at_once() -> None:
    """A factor takes gigabytes at real widths: it must not wait for the garbage collector."""
    weight, x = problem()
    gc.collect()
    gc.disable()
    try:
        factor = factor_of(x)
        seen = weakref.ref(factor.upper)
        gptq_round(weight, row_scale(weight, 4), factor, 4)
        del factor
        assert seen() is None
    finally:
        gc.enable()
