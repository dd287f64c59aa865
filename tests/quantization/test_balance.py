"""Where the channel scale starts."""

import pytest
import torch

from s2q.numerics.statistics import spearman
from s2q.quantization.balance import channel_scale, initial_scale, pooled_maxima
from s2q.recipe import TransformSpec

K = 16


def ranges(seed: int) -> torch.Tensor:
    return torch.rand(K, generator=torch.Generator().manual_seed(seed)) + 0.1


WEIGHT = ranges(9)
MAXIMA = [ranges(seed) * (seed + 1) for seed in range(4)]
PROGRESS = [0.0, 0.0, 0.5, 0.9]


def test_half_way_leaves_inputs_and_weights_with_ranges_alike() -> None:
    scale = channel_scale(MAXIMA[0], WEIGHT, 0.5)
    ratio = (MAXIMA[0] * scale) / (WEIGHT / scale)
    assert torch.allclose(ratio, ratio.mean().expand(K), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_scale_is_smoothquants_up_to_a_factor(alpha: float) -> None:
    smooth = MAXIMA[0] ** alpha / WEIGHT ** (1 - alpha)
    product = channel_scale(MAXIMA[0], WEIGHT, alpha) * smooth
    assert torch.allclose(product, product.mean().expand(K), rtol=1e-4)


def test_channels_that_were_always_zero_do_not_break_the_scale() -> None:
    zeros = torch.zeros(K)
    assert bool(channel_scale(zeros, zeros, 0.5).isfinite().all())


def test_max_looks_at_all_samples_and_early_at_the_first_quarter() -> None:
    assert torch.equal(pooled_maxima(MAXIMA, PROGRESS, WEIGHT, "max"), torch.stack(MAXIMA).amax(0))
    assert torch.equal(pooled_maxima(MAXIMA, PROGRESS, WEIGHT, "early"), torch.stack(MAXIMA[:2]).amax(0))
    assert torch.equal(pooled_maxima(MAXIMA[2:], PROGRESS[2:], WEIGHT, "early"), torch.stack(MAXIMA[2:]).amax(0))


def test_spearman_weights_steps_by_how_little_they_agree_with_the_weight() -> None:
    by_step = [torch.stack(MAXIMA[:2]).amax(0), MAXIMA[2], MAXIMA[3]]
    eta = torch.softmax(-torch.tensor([spearman(row, WEIGHT) for row in by_step]), 0)
    expected = sum(share * row for share, row in zip(eta, by_step, strict=True))
    assert torch.allclose(pooled_maxima(MAXIMA, PROGRESS, WEIGHT, "spearman"), expected)


def test_search_takes_the_scale_with_the_least_error() -> None:
    wanted = channel_scale(torch.stack(MAXIMA).amax(0), WEIGHT, 0.65)
    spec = TransformSpec(alpha="search")
    found = initial_scale(spec, MAXIMA, PROGRESS, WEIGHT, lambda scale: float((scale - wanted).abs().sum()))
    assert torch.allclose(found, wanted)


def test_without_samples_nothing_is_scaled() -> None:
    assert torch.equal(initial_scale(TransformSpec(), [], [], WEIGHT, lambda scale: 0.0), torch.ones(K))
