"""What a block is calibrated on, and the loss of doing so: Eq. 10 of arXiv 2508.04016."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2q.models.blocks import States, joined_tokens, replay
from s2q.models.family import Family


@dataclass(frozen=True)
class BlockSample:
    """One sample as a block sees it."""

    states: States
    sides: dict[str, Any]
    target: Tensor
    """The float block's output tokens, [B, S, channels]."""
    weights: Tensor | None = None
    """λ, [B, S]; None weights all tokens alike."""


def collate(samples: list[BlockSample]) -> BlockSample:
    """Several samples as one batch; side arguments without a batch dimension are taken from the first."""
    if len(samples) == 1:
        return samples[0]
    first = samples[0]
    batch = first.target.shape[0]

    def join(values: list[Any]) -> Any:
        batched = isinstance(values[0], Tensor) and values[0].ndim > 0 and values[0].shape[0] == batch
        return torch.cat(values) if batched else values[0]

    return BlockSample(
        {name: join([sample.states[name] for sample in samples]) for name in first.states},
        {name: join([sample.sides[name] for sample in samples]) for name in first.sides},
        join([sample.target for sample in samples]),
        None if first.weights is None else join([sample.weights for sample in samples]),
    )


def weighted_error(output: Tensor, sample: BlockSample) -> Tensor:
    """Eq. 10: (1/n) Σ_j λ_j ‖θ_f(x_j) − θ_q(x_j)‖², averaged over the batch, relative to (1/n) Σ_j ‖θ_f(x_j)‖²."""
    error = (output.float() - sample.target.float()).square().sum(-1)
    if sample.weights is not None:
        error = error * sample.weights
    return error.mean() / sample.target.float().square().sum(-1).mean()


@torch.no_grad()
def relative_error(block: nn.Module, family: Family, samples: list[BlockSample]) -> float:
    """Σ ‖θ_f − θ_q‖² / Σ ‖θ_f‖² over all tokens of all samples, unweighted."""
    error = power = 0.0
    for sample in samples:
        output = joined_tokens(family, replay(block, family, sample.states, sample.sides))
        error += float((output.double() - sample.target.double()).square().sum())
        power += float(sample.target.double().square().sum())
    return error / power
