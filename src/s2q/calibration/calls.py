"""How a pipeline calls its transformer while it makes a latent, step by step, and the branches of a step as one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2q.media import read_media
from s2q.models.family import Family
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.models.steps import steps_told

Call = dict[str, Any]


def calls_by_step(opened: OpenPipeline, prompt: str, seed: int) -> tuple[list[list[Call]], Tensor]:
    """Keyword arguments of every call of the transformer while a latent is made, step by step, and the finished latent.

    Of two transformers, one is called in its own steps alone: these are returned, and the latent that it leaves.

    Raises:
        PipelineError: it is not called at all.
    """
    steps: list[list[Call]] = [[]]
    left: list[Tensor] = []

    def before_call(module: Any, args: tuple, kwargs: Call) -> None:
        if args:
            raise PipelineError("the pipeline passes positional arguments to its transformer; keywords are needed")
        steps[-1].append({name: _detached(value) for name, value in kwargs.items()})

    def after_step(latents: Tensor) -> None:
        if steps[-1]:
            left[:] = [latents]
        steps.append([])

    handle = opened.transformer.register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        with steps_told(opened.pipe, after_step) as told:
            final = opened.pipe(
                prompt=prompt,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                return_dict=False,
                **told,
                **read_media(prompt),
                **opened.call,
            )[0]
    finally:
        handle.remove()
    served = [calls for calls in steps[:-1] if calls]
    if not served:
        raise PipelineError(f"{opened.part} is called in none of the {len(steps) - 1} steps: take more steps")
    whole = len(served) == len(steps) - 1 and final.shape == left[0].shape
    return served, (final if whole else left[0]).cpu()


def as_one_call(calls: Sequence[Call], family: Family) -> Call:
    """The calls of one step as one call whose batch holds the guidance branches, unconditional first.

    CogVideoX calls its transformer so already. Wan calls it twice, conditional first as all diffusers pipelines that
    do; these calls are stacked, so that a sample costs and weighs the same in every family. Each row has the values of
    its own call; a product of two rows may round otherwise than one of one row.

    Raises:
        PipelineError: no call or more than two, or calls that cannot be stacked.
    """
    if len(calls) == 1:
        return calls[0]
    if len(calls) != 2:
        raise PipelineError(
            f"the pipeline calls its transformer {len(calls)} times in a step: "
            "one call, or one for each of two guidance branches, can be recorded"
        )
    cond, uncond = calls
    joined: Call = {}
    for name in uncond | cond:
        one, other = uncond.get(name), cond.get(name)
        stacked = _has_batch(other) or (isinstance(other, Tensor) and name in family.batched)
        same_in_both = name in (family.latents, family.timestep) or not stacked
        if same_in_both and not same(one, other):
            raise PipelineError(f"argument {name!r} of the transformer differs between the guidance branches of a step")
        if stacked and _shape(one) != _shape(other):
            raise PipelineError(
                f"argument {name!r} of the transformer has shape {_shape(other)} in the conditional call and "
                f"{_shape(one)} in the unconditional one: they cannot be stacked; pad the text to one length"
            )
        joined[name] = torch.cat([one, other]) if stacked else other
    return joined


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 1


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple):
        return tuple(_detached(item) for item in value)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors bit for bit, tuples item by item."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other
