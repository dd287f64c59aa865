"""The start of the channel scale: between ranges of the inputs and of the weights (SmoothQuant and its kin)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s2q.numerics.statistics import spearman
from s2q.recipe import TransformSpec

SMALLEST_STATISTIC = 1e-5
# Share of the steps, from the start of denoising, that "early" looks at.
EARLY = 0.25
SEARCHED_ALPHAS = 20


def pooled_maxima(maxima: Sequence[Tensor], progress: Sequence[float], weight_max: Tensor, statistic: str) -> Tensor:
    """One range for each channel from those of the samples.

    Args:
        maxima: max|x| of each channel, [K], one a sample.
        progress: how far the denoising of each sample is, 0 … 1.
        weight_max: max|W| of each channel, [K].
        statistic: see `TransformSpec`. "early" falls back to all samples if none is early.

    Returns:
        [K].
    """
    if statistic == "early":
        early = [m for m, share in zip(maxima, progress, strict=True) if share < EARLY]
        return torch.stack(early or list(maxima)).amax(0)
    if statistic == "max":
        return torch.stack(list(maxima)).amax(0)
    steps = sorted(set(progress))
    by_step = torch.stack(
        [torch.stack([m for m, own in zip(maxima, progress, strict=True) if own == step]).amax(0) for step in steps]
    )
    correlation = torch.tensor([spearman(row, weight_max) for row in by_step])
    return (torch.softmax(-correlation, 0).to(by_step)[:, None] * by_step).sum(0)


def channel_scale(input_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """max|W|^(1−α) / max|x|^α, what the input is multiplied with, of geometric mean 1: both [K] → [K]."""
    weight_max, input_max = weight_max.clamp(min=SMALLEST_STATISTIC), input_max.clamp(min=SMALLEST_STATISTIC)
    scale = weight_max ** (1 - alpha) / input_max**alpha
    return scale / scale.log().mean().exp()


def initial_scale(
    spec: TransformSpec,
    maxima: Sequence[Tensor],
    progress: Sequence[float],
    weight_max: Tensor,
    error: Callable[[Tensor], float],
) -> Tensor:
    """The channel scale that `spec` starts from, [K].

    Args:
        error: output error of the quantized linears with a scale [K]; asked only by alpha = "search".
    """
    if not maxima:
        return torch.ones_like(weight_max)
    input_max = pooled_maxima(maxima, progress, weight_max, spec.statistic)
    if spec.alpha != "search":
        return channel_scale(input_max, weight_max, spec.alpha)
    scales = [channel_scale(input_max, weight_max, index / SEARCHED_ALPHAS) for index in range(SEARCHED_ALPHAS)]
    return min(scales, key=error)
