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
    prompts = min(prompts, sampler.pool or prompts)
    if prompts * steps < sampler.count:
        raise ValueError(
            f"{sampler.count} calibration samples asked for, but {prompts} prompts × {steps} steps give only "
            f"{prompts * steps} candidates: use more prompts or steps, or fewer samples"
        )


def select(scores: Tensor, sampler: SamplerSpec, seed: int) -> list[Sample]:
    """The samples of the pool that `sampler` asks for, in the order of the pool.

    Args:
        scores: [P, T], what "salient" goes by; the others look at the shape alone. Ties go to the earlier candidate.
        seed: for "random" and "uniform".

    Raises:
        ValueError: fewer candidates than samples, or scores that are not finite.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("the salience scores are not all finite: the float pipeline made latents that are not numbers")
    check_pool(*scores.shape, sampler)
    scores = scores[: sampler.pool]
    prompts, steps = scores.shape
    total = prompts * steps
    generator = torch.Generator().manual_seed(derived_seed(seed, "selection"))
    if sampler.kind == "salient" and not sampler.stratified:
        chosen = torch.argsort(scores.flatten(), descending=True, stable=True)[: sampler.count]
    elif sampler.kind == "random":
        chosen = torch.randperm(total, generator=generator)[: sampler.count]
    elif sampler.kind in ("uniform", "salient"):
        # Evenly spaced over the steps; which prompts stand for a step is drawn, or decided by the scores.
        orders = [
            torch.argsort(scores[:, step], descending=True, stable=True)
            if sampler.kind == "salient"
            else torch.randperm(prompts, generator=generator)
            for step in range(steps)
        ]
        order = torch.stack([order * steps + step for step, order in enumerate(orders)])
        chosen = order.flatten()[_evenly(sampler.count, prompts, steps)]
    else:
        raise ValueError(f"sampler {sampler.kind!r} chooses no samples")
    return [Sample(index // steps, index % steps) for index in sorted(chosen.tolist())]


def _evenly(count: int, prompts: int, steps: int) -> Tensor:
    """Places in a [steps, prompts] table, the first of each row, so that no step gives more than one more than another."""
    quota = [(step + 1) * count // steps - step * count // steps for step in range(steps)]
    return torch.tensor([step * prompts + place for step, number in enumerate(quota) for place in range(number)])
