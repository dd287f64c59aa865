"""How a pipeline calls its transformer while it makes a latent, step by step, and the branches of a step as one call."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2q.media import read_media
from s2q.models.family import Family
from s2q.models.loaded import is_hooked
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.models.steps import steps_told

Call = dict[str, Any]


class Section(NamedTuple):
    """One way from noise to a latent. Most pipelines go one for a clip; Framepack goes one for each piece of it."""

    steps: list[list[Call]]
    """Keyword arguments of every call of the transformer, step by step."""
    final: Tensor
    """What the last step leaves, on the CPU."""


def calls_by_section(opened: OpenPipeline, prompt: str, seed: int) -> list[Section]:
    """How the transformer is called while a clip is made. A section begins where the time is later than it was before.

    Of two transformers, one is called in its own steps alone: these are returned, and the latent that it leaves.

    Raises:
        PipelineError: it is not called at all, or in a way that cannot be replayed.
    """
    family = opened.family
    sections: list[Section] = []
    calls: list[Call] = []  # of the step that is running
    steps: list[list[Call]] = []  # of the section
    left: list[Tensor] = []  # by its last step
    told, idle = 0, 0

    # A scheduler of EDM's scales x_t before the transformer sees it: what is left at last is looked at alike.
    as_seen = getattr(opened.pipe.scheduler, "precondition_inputs", lambda latents, sigma: latents)

    def close() -> None:
        sections.append(Section(list(steps), as_seen(left[0], 0.0).cpu()))
        steps.clear()

    def before_call(module: Any, args: tuple, kwargs: Call) -> None:
        if is_hooked(module):
            raise PipelineError(
                f"the pipeline hangs hooks on its {opened.part} for some of its calls, as guiders do that skip layers: what "
                "they change is in no argument, so these calls cannot be replayed. Use a guider without hooks, such as "
                "ClassifierFreeGuidance"
            )
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        if steps and not calls and given[family.timestep].max() > steps[-1][0][family.timestep].max():
            close()
        calls.append({name: _detached(value) for name, value in given.items()})

    def after_step(latents: Tensor) -> None:
        nonlocal told, idle
        told += 1
        if not calls:
            idle += 1
            return
        left[:] = [latents]
        steps.append(list(calls))
        calls.clear()

    handle = opened.transformer.register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        with steps_told(opened.pipe, after_step) as more:
            made = opened.pipe(
                prompt=prompt,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                return_dict=False,
                **more,
                **read_media(prompt),
                **opened.call,
            )[0]
    finally:
        handle.remove()
    if not steps:
        raise PipelineError(f"{opened.part} is called in none of the {told} steps: take more steps")
    # Wan 2.2 5B puts its image in the place of the first frame afterwards; Wan Animate scales the whole for its VAE.
    if not idle and isinstance(made, Tensor) and _much_the_same(made, left[0]):
        left[:] = [made]
    close()
    return sections


def _much_the_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one == other).float().mean()) >= 0.5


def as_calls(calls: Sequence[Call], family: Family) -> list[Call]:
    """The calls of one step, those of its two guidance branches as one call whose batch holds both, unconditional first.

    CogVideoX calls its transformer so already. Wan calls it twice, conditional first as all diffusers pipelines that
    do; these calls are stacked, so that a sample costs and weighs the same in every family. Each row has the values of
    its own call; a product of two rows may round otherwise than one of one row. Calls that cannot be stacked, for their
    texts have different lengths or a number differs, and further ones (LTX-2 perturbs its transformer for more guidance)
    stay calls of their own, in the pipeline's order.
    """
    if len(calls) < 2 or not _stackable(calls[0], calls[1], family):
        return list(calls)
    cond, uncond = calls[:2]
    joined = {
        name: torch.cat([uncond[name], value]) if _stacks(name, value, family) else value
        for name, value in cond.items()
    }
    return [joined, *calls[2:]]


def rows_by_branch(call: Call, made: Sequence[Call], family: Family) -> set[str]:
    """Names of the arguments of `call` that have a row for each branch.

    Args:
        call: one of those that `as_calls` made of `made`.
    """
    rows = call[family.latents].shape[0]
    if rows > made[0][family.latents].shape[0]:
        return {name for name, value in made[0].items() if _stacks(name, value, family)}
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor) and name not in family.shared}
    return {name for name, value in tensors.items() if name in family.batched or (value.ndim and len(value) == rows)}


def _stackable(cond: Call, uncond: Call, family: Family) -> bool:
    if cond.keys() != uncond.keys() or not _has_batch(cond[family.latents]):
        return False
    return all(
        _shape(value) == _shape(uncond[name]) if _stacks(name, value, family) else same(value, uncond[name])
        for name, value in cond.items()
    )


def _stacks(name: str, value: Any, family: Family) -> bool:
    return name not in family.shared and (_has_batch(value) or (isinstance(value, Tensor) and name in family.batched))


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
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other
