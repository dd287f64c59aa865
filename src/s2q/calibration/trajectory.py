"""Record what the full-precision pipeline feeds its transformer, and find it again by (prompt, step, branch).

One safetensors file a prompt, memory-mapped when read:

    latents            [T+1, …]   x_t before each step, and what the last step leaves; guidance branches share it
    timesteps          [T] or, where each token has a time of its own, [T, S]
    condition          [B, …]     what stands beside x_t in further channels, such as an image's latents; of every step
    arguments.NAME     [B, …]     conditioning, one row a branch (unconditional first, as CogVideoX batches them)
    shared.NAME        any        tensors without a branch, such as rotary angles; NAME.0.1 in tuples of tuples
    steps.arguments.NAME, steps.shared.NAME   [T, …]   the same, where they change from step to step (sound)

Where a step is several calls (LTX-2 perturbs its transformer for more guidance), `call-1.` and so on stand before all but
`latents` and `timesteps` of the second and later.
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

from s2q.calibration.calls import Call, as_calls, calls_by_step, same
from s2q.calibration.encoding import prompts_encoded
from s2q.media import described
from s2q.models.family import Family
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.progress import Progress
from s2q.storage import derived_seed, read_metadata, write_tensors

Branch = Literal["both", "uncond", "cond"]
STEPS = "steps."
"""What names of tensors that change from step to step begin with."""


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
        PipelineError: the pipeline calls its transformer in a way that cannot be replayed.
    """
    # Files that an earlier version of s2q left say nothing of calls: they are made again.
    missing = [i for i in range(len(prompts)) if takes(i) and "calls" not in _metadata(folder, i)]
    encoded = nullcontext()
    if opened.disposable_text:
        encoded = prompts_encoded(opened, [prompts[index] for index in missing])
    with progress.stage("trajectories", len(prompts)) as stage, encoded:
        stage.advance(len(prompts) - len(missing))
        for index in missing:
            started = time.perf_counter()
            tensors, calls = _record(opened, prompts[index], derived_seed(seed, "trajectory", index))
            metadata = {
                "prompt": described(prompts[index]),
                "calls": calls,
                "channels": opened.family.channels,
                "seconds": time.perf_counter() - started,
            }
            write_tensors(trajectory_path(folder, index), tensors, metadata)
            stage.advance()
    return TrajectoryStore(folder, len(prompts), opened.family.latents, opened.family.timestep)


def _metadata(folder: Path, prompt: int) -> Mapping[str, Any]:
    return read_metadata(trajectory_path(folder, prompt)) or {}


def _record(opened: OpenPipeline, prompt: str, seed: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors of one prompt's file, and of each call of a step what is no tensor, see `_of_call`."""
    family, axis = opened.family, opened.family.channels
    steps, final = calls_by_step(opened, prompt, seed)
    for step, made in enumerate(steps):
        if len(made) != len(steps[0]):
            raise PipelineError(
                f"the pipeline calls its transformer {len(steps[0])} times in its first step and {len(made)} times "
                f"in step {step + 1}: steps must be alike"
            )
    tensors: dict[str, Tensor] = {}
    calls: list[dict[str, Any]] = []
    for over_time in zip(*(as_calls(made, family) for made in steps), strict=True):
        noisy, condition = _parted([call[family.latents] for call in over_time], final.shape[axis], axis)
        own, described_call = _of_call(over_time, family)
        if not calls:
            dtype = over_time[0][family.latents].dtype
            tensors["latents"] = torch.cat([latents[:1] for latents in noisy] + [final.to(dtype)])
            # A pipeline may change their dtype along the way (HunyuanVideo in bfloat16): the widest holds them all.
            tensors["timesteps"] = torch.stack([_first_row(call[family.timestep]) for call in over_time])
        for step, (latents, call) in enumerate(zip(noisy, over_time, strict=True)):
            _check_shared(family.latents, latents, tensors["latents"][step])
            _check_shared(family.timestep, call[family.timestep], tensors["timesteps"][step])
        tensors |= {f"{_before(len(calls))}{name}": tensor for name, tensor in (condition | own).items()}
        calls.append(described_call)
    return tensors, calls


def _before(call: int) -> str:
    """What the names of the tensors of call number `call` of a step begin with."""
    return f"call-{call}." if call else ""


def _check_shared(name: str, rows: Tensor, one: Tensor) -> None:
    if not torch.equal(rows.to(one.dtype), one.expand_as(rows)):
        raise PipelineError(f"argument {name!r} of the transformer differs between the guidance branches of a step")


def _of_call(over_time: Sequence[Call], family: Family) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one of a step's calls, given as it is made over the T steps, and JSON-like what is no tensor.

    "arguments" are plain ones (None, bool, numbers, tuples of them), "lists" the names of those that are lists, and
    "branches" is the number of rows.
    """
    first, tensors, plain = over_time[0], {}, {}
    branches = first[family.latents].shape[0]
    for name, value in first.items():
        if name in (family.latents, family.timestep):
            continue
        if isinstance(value, Tensor):
            by_branch = name in family.batched or (value.ndim and value.shape[0] == branches)
            kind = "arguments" if by_branch else "shared"
            values = [call[name] for call in over_time]
            if not all(same(later, value) for later in values) and len({later.shape for later in values}) == 1:
                tensors[f"{STEPS}{kind}.{name}"] = torch.stack(values)
                continue
            tensors[f"{kind}.{name}"] = value
        elif isinstance(value, tuple) and any(isinstance(item, Tensor | tuple) for item in value):
            tensors |= dict(_leaves(f"shared.{name}", value))
        else:
            plain[name] = value
        if any(not same(call.get(name), value) for call in over_time):
            raise PipelineError(f"argument {name!r} of the transformer changes from step to step")
    lists = [name for name, value in plain.items() if isinstance(value, list)]
    return tensors, {"arguments": plain, "lists": lists, "branches": branches}


def _parted(inputs: Sequence[Tensor], channels: int, axis: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the transformer is given, [B, …] a step, parted into x_t and what a pipeline puts behind it in the channels."""
    more = inputs[0].shape[axis] - channels
    if more == 0:
        return list(inputs), {}
    conditions = [tensor.narrow(axis, channels, more) for tensor in inputs]
    if not all(torch.equal(condition, conditions[0]) for condition in conditions):
        raise PipelineError(f"the {more} channels beside the {channels} of the latents change from step to step")
    return [tensor.narrow(axis, 0, channels) for tensor in inputs], {"condition": conditions[0].contiguous()}


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
        metadata = _metadata(self.folder, prompt)
        if not metadata:
            raise FileNotFoundError(f"the trajectory of prompt {prompt} is missing from {self.folder}")
        return metadata

    def calls(self, prompt: int) -> int:
        """How often the transformer is called in a step; two guidance branches that were stacked are one call."""
        return len(self._metadata(prompt)["calls"])

    def arguments(self, prompt: int, step: int, branch: Branch = "both", call: int = 0) -> dict[str, Any]:
        """Keyword arguments of one of the transformer's calls at (prompt, step), for one guidance branch or all as a batch.

        Only the rows asked for are read from disk.

        Args:
            call: which of the step's, in the pipeline's order; the first holds the conditional branch.
        """
        metadata = self._metadata(prompt)
        made = metadata["calls"][call]
        # JSON has no tuples.
        arguments = {
            name: tuple(value) if isinstance(value, list) and name not in made["lists"] else value
            for name, value in made["arguments"].items()
        }
        with self._open(prompt) as file:
            latents = file.get_slice("latents")[step : step + 1]
            timestep = file.get_slice("timesteps")[step : step + 1]
            shared: dict[str, dict[tuple[int, ...], Tensor]] = {}
            condition = None
            for name in sorted(file.keys()):
                if not name.startswith(_before(call)):
                    continue
                own = name.removeprefix(_before(call))
                changing = own.startswith(STEPS)
                kind, _, rest = own.removeprefix(STEPS).partition(".")
                if kind in ("arguments", "condition"):
                    value = file.get_slice(name)[step] if changing else file.get_tensor(name)
                    if branch != "both":
                        rows = len(value) // made["branches"]
                        value = value[:rows] if branch == "uncond" else value[-rows:]
                    if kind == "condition":
                        condition = value
                    else:
                        arguments[rest] = value
                elif kind == "shared":
                    argument, *places = rest.split(".")
                    value = file.get_slice(name)[step] if changing else file.get_tensor(name)
                    shared.setdefault(argument, {})[tuple(map(int, places))] = value
        arguments |= {name: _nested(places) for name, places in shared.items()}
        branches = made["branches"] if branch == "both" else 1
        latents = latents.expand(branches, *latents.shape[1:])
        if condition is not None:
            latents = torch.cat([latents, condition], dim=metadata["channels"])
        arguments[self.latents_name] = latents
        arguments[self.timestep_name] = timestep.expand(branches, *timestep.shape[1:])
        return arguments
