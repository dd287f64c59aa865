"""Choose the calibration samples from the pool of candidates."""

from typing import NamedTuple

import torch
from torch import Tensor

from s2q.recipe import SamplerSpec
from s2q.storage import derived_seed


class Sample(NamedTuple):
    """A calibration sample, by address: both guidance branches of one step of one prompt."""

    prompt: int
    step: int


def check_pool(prompts: int, steps: int, sampler: SamplerSpec) -> None:
    """Whether P prompts × T steps give enough candidates.

    Raises:
        ValueError: they do not.
    """
    if prompts * steps < sampler.count:
        raise ValueError(
            f"{sampler.count} calibration samples asked for, but {prompts} prompts × {steps} steps give only "
            f"{prompts * steps} candidates: use more prompts or steps, or fewer samples"
        )


def select(scores: Tensor, sampler: SamplerSpec, seed: int) -> list[Sample]:
    """The samples of the pool that `sampler` asks for, in the order of the pool.

    Args:
        scores: [P, T], Eq. 8; only "salient" looks at the values. Ties go to the earlier candidate.
        seed: for "random" and "uniform".

    Raises:
        ValueError: fewer candidates than samples, or scores that are not finite.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("the salience scores are not all finite: the float pipeline made latents that are not numbers")
    prompts, steps = scores.shape
    check_pool(prompts, steps, sampler)
    total = prompts * steps
    generator = torch.Generator().manual_seed(derived_seed(seed, "selection"))
    if sampler.kind == "salient":
        chosen = torch.argsort(scores.flatten(), descending=True, stable=True)[: sampler.count]
    elif sampler.kind == "random":
        chosen = torch.randperm(total, generator=generator)[: sampler.count]
    elif sampler.kind == "uniform":
        # Evenly spaced over the steps; which prompts stand for a step is drawn.
        order = torch.stack([torch.randperm(prompts, generator=generator) * steps + step for step in range(steps)])
        chosen = order.flatten()[torch.arange(sampler.count) * total // sampler.count]
    else:
        raise ValueError(f"sampler {sampler.kind!r} chooses no samples")
    return [Sample(index // steps, index % steps) for index in sorted(chosen.tolist())]
