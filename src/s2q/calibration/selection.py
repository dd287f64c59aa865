"""Choose the calibration samples from the pool of candidates."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
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
    if sampler.balanced:
        chosen = torch.tensor(_balanced(scores, sampler.count))
    elif sampler.kind == "salient" and not sampler.stratified:
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


def _quotas(count: int, steps: int) -> list[int]:
    """How many samples each step gives: none more than one more than another."""
    return [(step + 1) * count // steps - step * count // steps for step in range(steps)]


def _evenly(count: int, prompts: int, steps: int) -> Tensor:
    """Places in a [steps, prompts] table, the first of each row, as many as the step gives."""
    quotas = enumerate(_quotas(count, steps))
    return torch.tensor([step * prompts + place for step, number in quotas for place in range(number)])


def _balanced(scores: Tensor, count: int) -> list[int]:
    """Places in the pool [P, T] with the most salience together, as many of each step, and no more of a prompt than its share.

    A transport problem, solved exactly. Scores are min–max normalised within a step, for those of late steps are larger.
    """
    prompts, steps = scores.shape
    low, high = scores.double().amin(0), scores.double().amax(0)
    worth = ((scores - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)).numpy()
    of_steps = np.tile(np.eye(steps), prompts)
    of_prompts = np.repeat(np.eye(prompts), steps, axis=1)
    quotas = _quotas(count, steps)
    limits = [LinearConstraint(of_steps, quotas, quotas), LinearConstraint(of_prompts, 0, -(-count // prompts))]
    solved = milp(-worth.ravel(), integrality=1, bounds=(0, 1), constraints=limits)
    return np.flatnonzero(solved.x > 0.5).tolist()
