"""What a block is calibrated on, and the loss of doing so: Eq. 10 of arXiv 2508.04016."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from s2q.models.blocks import States, joined_tokens, replay, video_slice
from s2q.models.family import Family
from s2q.recipe import ObjectiveSpec


@dataclass(frozen=True)
class BlockSample:
    """One sample as a block sees it."""

    states: States
    sides: dict[str, Any]
    target: Tensor
    """The float block's output tokens, [B, S, channels]."""
    weights: Tensor | None = None
    """λ, [B, S]; None weights all tokens alike."""
    progress: float = 0.0
    """How far its denoising is: 0 at the first step, towards 1 at the last."""
    frames: int = 1
    """Latent frames, into which the video tokens fall."""
    guidance: float | None = None
    """Scale s of classifier-free guidance if the rows are pairs of an unconditional and a conditional branch."""
    call: int = 0
    """Which of a step's calls it is: those of different kinds have different side arguments, and are never collated."""
    video_tokens: int | None = None
    """Tokens of the clip, which stand last of the video's: Framepack has its history before them. None is all."""


def collate(samples: list[BlockSample]) -> BlockSample:
    """Several samples as one batch; side arguments without a batch dimension are taken from the first."""
    if len(samples) == 1:
        return samples[0]
    first = samples[0]
    batch = first.target.shape[0]

    def join(values: Sequence[Any]) -> Any:
        if isinstance(values[0], tuple):
            return tuple(map(join, zip(*values, strict=True)))
        batched = isinstance(values[0], Tensor) and values[0].ndim > 0 and values[0].shape[0] == batch
        return torch.cat(tuple(values)) if batched else values[0]

    return replace(
        first,
        states={name: join([sample.states[name] for sample in samples]) for name in first.states},
        sides={name: join([sample.sides[name] for sample in samples]) for name in first.sides},
        target=join([sample.target for sample in samples]),
        weights=None if first.weights is None else join([sample.weights for sample in samples]),
    )


def rows_of(sample: BlockSample, rows: slice) -> BlockSample:
    """Some rows of a sample: the opposite of `collate`, by the same rule of what has rows."""
    batch = sample.target.shape[0]

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cut, value))
        return value[rows] if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch else value

    return replace(
        sample,
        states={name: cut(value) for name, value in sample.states.items()},
        sides={name: cut(value) for name, value in sample.sides.items()},
        target=cut(sample.target),
        weights=cut(sample.weights),
    )


def weighted_error(output: Tensor, sample: BlockSample) -> Tensor:
    """Eq. 10: (1/n) Σ_j λ_j ‖θ_f(x_j) − θ_q(x_j)‖², averaged over the batch, relative to (1/n) Σ_j ‖θ_f(x_j)‖²."""
    error = (output.float() - sample.target.float()).square().sum(-1)
    if sample.weights is not None:
        error = error * sample.weights
    return error.mean() / sample.target.float().square().sum(-1).mean()


def frame_similarity(video: Tensor, frames: int) -> Tensor:
    """Log-softmax over j of cos(frame i, frame j): [B, S, channels] → [B, F, F], S = F · tokens of a frame."""
    flat = nn.functional.normalize(video.float().unflatten(1, (frames, -1)).flatten(2), dim=-1)
    return (flat @ flat.mT).log_softmax(-1)


def temporal_error(output: Tensor, target: Tensor, frames: int) -> Tensor:
    """Q-VDiT's temporal distillation, Σ_i KL(D_i float ‖ D_i quantized), averaged over the batch.

    Args:
        output, target: the video tokens of the quantized and of the float block, [B, S, channels].
    """
    ours, theirs = frame_similarity(output, frames), frame_similarity(target, frames)
    return (theirs.exp() * (theirs - ours)).sum((1, 2)).mean()


def guided_error(output: Tensor, sample: BlockSample) -> Tensor:
    """Eq. 10 of the guided combination: errors of both branches that agree count once, those of their gap s times.

    The combination of the errors is that which the pipeline makes of its transformer's outputs,
    e = e_uncond + s (e_cond − e_uncond); a token's weight is the mean of its two.
    """
    error = output.float() - sample.target.float()
    uncond, cond = error[0::2], error[1::2]
    combined = (uncond + sample.guidance * (cond - uncond)).square().sum(-1)
    if sample.weights is not None:
        combined = combined * (sample.weights[0::2] + sample.weights[1::2]) / 2
    return combined.mean() / sample.target.float().square().sum(-1).mean()


def _clip(video: slice, tokens: int | None) -> slice:
    return video if tokens is None else slice(max(video.start, video.stop - tokens), video.stop)


def block_loss(
    family: Family, states: States, sample: BlockSample, objective: ObjectiveSpec, whole: BlockSample | None = None
) -> Tensor:
    """The recipe's objective of one block: Eq. 10, the guided error, and γ times the temporal error of the video tokens.

    Args:
        whole: what `sample` are some rows of; the losses of all parts sum to that of the whole: relative errors count by
            the part's share of the float output's power, the temporal error by its share of the rows.
    """
    output = joined_tokens(family, states)
    loss = weighted_error(output, sample)
    if objective.guided and sample.guidance is not None and output.shape[0] % 2 == 0:
        loss = loss + objective.guided * guided_error(output, sample)
    partial = whole is not None and whole is not sample
    if partial:
        loss = loss * (sample.target.float().square().sum() / whole.target.float().square().sum())
    if objective.temporal:
        video = _clip(video_slice(family, states), sample.video_tokens)
        error = temporal_error(output[:, video], sample.target[:, video], sample.frames)
        loss = loss + objective.temporal * (error * (len(output) / len(whole.target)) if partial else error)
    return loss


@torch.no_grad()
def relative_error(block: nn.Module, family: Family, samples: Sequence[BlockSample]) -> float:
    """Σ ‖θ_f − θ_q‖² / Σ ‖θ_f‖² over all tokens of all samples, unweighted."""
    error = power = 0.0
    for sample in samples:
        output = joined_tokens(family, replay(block, family, sample.states, sample.sides))
        error += float((output.double() - sample.target.double()).square().sum())
        power += float(sample.target.double().square().sum())
    return error / power
