"""Record what the full-precision pipeline feeds its transformer, and find it again by (prompt, step, branch).

One safetensors file a prompt, memory-mapped when read:

    latents            [T+1, …]   x_t before each step, and what the last step leaves; guidance branches share it
    timesteps          [T] or, where each token has a time of its own, [T, S]
    arguments.NAME     [B, …]     conditioning, one row a branch (unconditional first, as CogVideoX batches them)
    shared.NAME        any        tensors without a branch, such as rotary angles; NAME.0.1 in tuples of tuples
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from s2q.calibration.encoding import prompts_encoded
from s2q.models.family import Family
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.progress import Progress
from s2q.storage import derived_seed, read_metadata, write_tensors

Branch = Literal["both", "uncond", "cond"]
Call = dict[str, Any]


def trajectory_path(folder: Path, prompt: int) -> Path:
    """File of the trajectory of prompt number `prompt`."""
    return folder / f"prompt-{prompt:04d}.safetensors"


def record_trajectories(
    opened: OpenPipeline,
    prompts: Sequence[str],
    seed: int,
    folder: Path,
    progress: Progress,
    takes: Callable[[int], bool] = lambda index: True,
) -> "TrajectoryStore":
    """Run the pipeline once a prompt; prompts whose file is there already are skipped.

    Args:
        takes: whether prompt number n is recorded here; another process records the others.

    Raises:
        PipelineError: the pipeline calls its transformer in a way that cannot be addressed by (step, branch).
    """
    missing = [i for i in range(len(prompts)) if takes(i) and read_metadata(trajectory_path(folder, i)) is None]
    encoded = nullcontext()
    if opened.disposable_text:
        encoded = prompts_encoded(opened, [prompts[index] for index in missing])
    with progress.stage("trajectories", len(prompts)) as stage, encoded:
        stage.advance(len(prompts) - len(missing))
        for index in missing:
            started = time.perf_counter()
            tensors, plain = _record(opened, prompts[index], derived_seed(seed, "trajectory", index))
            metadata = {"prompt": prompts[index], "arguments": plain, "seconds": time.perf_counter() - started}
            write_tensors(trajectory_path(folder, index), tensors, metadata)
            stage.advance()
    return TrajectoryStore(folder, len(prompts), opened.family.latents, opened.family.timestep)


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

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if steps[-1] and "latents" in tensors:
            left[:] = [tensors["latents"]]
        steps.append([])
        return tensors

    handle = opened.transformer.register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        final = opened.pipe(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            return_dict=False,
            callback_on_step_end=after_step,
            **opened.call,
        )[0]
    finally:
        handle.remove()
    served = [calls for calls in steps[:-1] if calls]
    if not served:
        raise PipelineError(f"{opened.part} is called in none of the {len(steps) - 1} steps: take more steps")
    return served, (final if len(served) == len(steps) - 1 else left[0]).cpu()


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
        same_in_both = name in (family.latents, family.timestep) or not _has_batch(other)
        if same_in_both and not _same(one, other):
            raise PipelineError(f"argument {name!r} of the transformer differs between the guidance branches of a step")
        if _has_batch(other) and _shape(one) != _shape(other):
            raise PipelineError(
                f"argument {name!r} of the transformer has shape {_shape(other)} in the conditional call and "
                f"{_shape(one)} in the unconditional one: they cannot be stacked; pad the text to one length"
            )
        joined[name] = torch.cat([one, other]) if _has_batch(other) else other
    return joined


def _has_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == 1


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _record(opened: OpenPipeline, prompt: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one prompt's file, and the transformer's plain arguments (None, bool, number, tuple of numbers)."""
    family = opened.family
    steps, final = calls_by_step(opened, prompt, seed)
    for step, made in enumerate(steps):
        if len(made) != len(steps[0]):
            raise PipelineError(
                f"the pipeline calls its transformer {len(steps[0])} times in its first step and {len(made)} times "
                f"in step {step + 1}: steps must be alike"
            )
    calls = [as_one_call(made, family) for made in steps]
    first = calls[0]
    branches = first[family.latents].shape[0]
    tensors = {
        "latents": torch.cat([call[family.latents][:1] for call in calls] + [final.to(first[family.latents].dtype)]),
        # A pipeline may change their dtype along the way (HunyuanVideo in bfloat16): the widest holds them all.
        "timesteps": torch.stack([_first_row(call[family.timestep]) for call in calls]),
    }
    plain: dict[str, Any] = {}
    for name, value in first.items():
        if name in (family.latents, family.timestep):
            continue
        if isinstance(value, Tensor):
            kind = "arguments" if value.ndim and value.shape[0] == branches else "shared"
            tensors[f"{kind}.{name}"] = value
        elif isinstance(value, tuple) and any(isinstance(item, Tensor | tuple) for item in value):
            tensors |= dict(_leaves(f"shared.{name}", value))
        else:
            plain[name] = value
        if any(not _same(call.get(name), value) for call in calls):
            raise PipelineError(f"argument {name!r} of the transformer changes from step to step")
    return tensors, plain


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested tuples, named by their places: `name.0.1` is the second of the first."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}.{index}", item)
    else:
        raise PipelineError(
            f"argument {name.split('.')[1]!r} of the transformer mixes tensors with {type(value).__name__}"
        )


def _nested(places: Mapping[tuple[int, ...], Tensor]) -> Any:
    """The opposite of `_leaves`."""
    if () in places:
        return places[()]
    items: dict[int, dict[tuple[int, ...], Tensor]] = {}
    for (first, *rest), tensor in places.items():
        items.setdefault(first, {})[tuple(rest)] = tensor
    return tuple(_nested(items[index]) for index in sorted(items))


def _first_row(value: Tensor) -> Tensor:
    return value[0] if value.ndim else value


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple):
        return tuple(_detached(item) for item in value)
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@dataclass(frozen=True)
class TrajectoryStore:
    """The recorded trajectories of P prompts over T steps."""

    folder: Path
    prompts: int
    latents_name: str
    timestep_name: str

    def _open(self, prompt: int):
        return safe_open(trajectory_path(self.folder, prompt), "pt")

    def timesteps(self, prompt: int = 0) -> Tensor:
        """[T] of one prompt, in the order they are run (most noise first); of several times in a step, the noisiest."""
        with self._open(prompt) as file:
            timesteps = file.get_tensor("timesteps")
        return timesteps.reshape(len(timesteps), -1).amax(1)

    def latents(self, prompt: int) -> Tensor:
        """x_t over the steps: [T+1, …] without a batch dimension; the last row is the finished latent."""
        with self._open(prompt) as file:
            return file.get_tensor("latents")

    def seconds(self) -> float:
        """Time that recording took, summed over prompts (and over interrupted runs)."""
        return sum(self._metadata(prompt)["seconds"] for prompt in range(self.prompts))

    def _metadata(self, prompt: int) -> Mapping[str, Any]:
        metadata = read_metadata(trajectory_path(self.folder, prompt))
        if metadata is None:
            raise FileNotFoundError(f"the trajectory of prompt {prompt} is missing from {self.folder}")
        return metadata

    def arguments(self, prompt: int, step: int, branch: Branch = "both") -> dict[str, Any]:
        """Keyword arguments of the transformer's call at (prompt, step), for one guidance branch or both as a batch.

        Only the rows asked for are read from disk.
        """
        plain = self._metadata(prompt)["arguments"]
        # JSON has no tuples, and pipelines no lists, in what they give the transformer.
        arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        with self._open(prompt) as file:
            latents = file.get_slice("latents")[step : step + 1]
            timestep = file.get_slice("timesteps")[step : step + 1]
            shared: dict[str, dict[tuple[int, ...], Tensor]] = {}
            branches = 1
            for name in sorted(file.keys()):
                kind, _, rest = name.partition(".")
                if kind == "arguments":
                    value = file.get_tensor(name)
                    if branch != "both":
                        value = value[:1] if branch == "uncond" else value[-1:]
                    branches = value.shape[0]
                    arguments[rest] = value
                elif kind == "shared":
                    argument, *places = rest.split(".")
                    shared.setdefault(argument, {})[tuple(map(int, places))] = file.get_tensor(name)
        arguments |= {name: _nested(places) for name, places in shared.items()}
        arguments[self.latents_name] = latents.expand(branches, *latents.shape[1:])
        arguments[self.timestep_name] = timestep.expand(branches, *timestep.shape[1:])
        return arguments
