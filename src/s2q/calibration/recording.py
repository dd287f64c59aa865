"""Run the full-precision pipeline and write down what it feeds its transformer, see `s2q.calibration.trajectory`."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2q.calibration.calls import Call, as_calls, calls_by_section, rows_by_branch, same
from s2q.calibration.encoding import prompts_encoded
from s2q.calibration.trajectory import (
    SECTIONS,
    STEPS,
    TrajectoryStore,
    name_before,
    recorded,
    section_of,
    trajectory_path,
)
from s2q.media import described
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.progress import Progress
from s2q.storage import derived_seed, write_tensors


def record_trajectories(
    opened: OpenPipeline,
    prompts: Sequence[str],
    seed: int,
    folder: Path,
    progress: Progress,
    takes: Callable[[int], bool] = lambda index: True,
) -> TrajectoryStore:
    """Run the pipeline once a prompt; prompts whose file is there already are skipped.

    Args:
        takes: whether prompt number n is recorded here; another process records the others.

    Raises:
        PipelineError: the pipeline calls its transformer in a way that cannot be replayed.
    """
    # Files that an earlier version of s2q left say nothing of calls: they are made again.
    missing = [i for i in range(len(prompts)) if takes(i) and "calls" not in recorded(folder, i)]
    encoded = nullcontext()
    if opened.disposable_text:
        encoded = prompts_encoded(opened, [prompts[index] for index in missing])
    with progress.stage("trajectories", len(prompts)) as stage, encoded:
        stage.advance(len(prompts) - len(missing))
        for index in missing:
            started = time.perf_counter()
            tensors, calls, lengths = _record(opened, prompts[index], derived_seed(seed, "trajectory", index))
            metadata = {
                "prompt": described(prompts[index]),
                "calls": calls,
                "sections": lengths,
                "channels": opened.family.channels,
                "seconds": time.perf_counter() - started,
            }
            write_tensors(trajectory_path(folder, index), tensors, metadata)
            stage.advance()
    return TrajectoryStore(folder, len(prompts), opened.family.latents, opened.family.timestep)


def _record(opened: OpenPipeline, prompt: str, seed: int) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[int]]:
    """Tensors of one prompt's file, what is no tensor of each call of a step, see `_of_call`, and steps of each section."""
    family, axis = opened.family, opened.family.channels
    sections = calls_by_section(opened, prompt, seed)
    steps = [step for section in sections for step in section.steps]
    lengths = [len(section.steps) for section in sections]
    for step, made in enumerate(steps):
        if len(made) != len(steps[0]):
            raise PipelineError(
                f"the pipeline calls its transformer {len(steps[0])} times in its first step and {len(made)} times "
                f"in step {step + 1}: steps must be alike"
            )
    stacked = [as_calls(made, family) for made in steps]
    if len({len(made) for made in stacked}) > 1:
        raise PipelineError(
            "the guidance branches of some steps can be stacked, those of others not: steps must be alike"
        )
    tensors: dict[str, Tensor] = {}
    calls: list[dict[str, Any]] = []
    for over_time in zip(*stacked, strict=True):
        noisy, beside = _parted([call[family.latents] for call in over_time], sections[0].final.shape[axis], axis)
        times = [call[family.timestep] for call in over_time]
        if not calls:
            rows, dtype = iter(noisy), noisy[0].dtype
            one_after_another = [[*(next(rows)[-1:] for _ in one.steps), one.final.to(dtype)] for one in sections]
            tensors["latents"] = torch.cat([row for rows in one_after_another for row in rows])
            # A pipeline may change their dtype along the way (HunyuanVideo in bfloat16): the widest holds them all.
            tensors["timesteps"] = torch.stack([_last_row(value) for value in times])
        x = [tensors["latents"][step + section_of(lengths, step)] for step in range(len(steps))]
        known = {family.latents} if _are_rows_of(noisy, x) else set()
        known |= {family.timestep} if _are_rows_of(times, tensors["timesteps"]) else set()
        own, plain = _of_call(over_time, known, rows_by_branch(over_time[0], steps[0], family), lengths)
        if beside and family.latents in known:
            prefix, kept = _over_time(beside, lengths)
            if prefix == STEPS:
                raise PipelineError(
                    f"the {beside[0].shape[axis]} channels beside the {noisy[0].shape[axis]} of the latents change from "
                    "step to step"
                )
            own[f"{prefix}condition"] = kept.contiguous()
        tensors |= {f"{name_before(len(calls))}{name}": tensor for name, tensor in own.items()}
        calls.append(plain | {"branches": len(noisy[0])})
    return tensors, calls, lengths


def _are_rows_of(values: Sequence[Tensor], ones: Sequence[Tensor]) -> bool:
    """Whether, in every step, each branch has the same."""
    return all(
        rows.shape[1:] == one.shape and torch.equal(rows.to(one.dtype), one.expand_as(rows))
        if rows.ndim
        else torch.equal(rows.to(one.dtype), one)
        for rows, one in zip(values, ones, strict=True)
    )


def _of_call(
    over_time: Sequence[Call], known: Collection[str], by_branch: Collection[str], lengths: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one of a step's calls, given as it is made over the T steps, and JSON-like what is no tensor.

    "arguments" are plain ones (None, bool, numbers, tuples of them), "lists" the names of those that are lists.

    Args:
        known: arguments that are kept otherwise.
        by_branch: those that have a row for each branch.
        lengths: steps of each section.
    """
    tensors, plain = {}, {}
    for name, value in over_time[0].items():
        if name in known:
            continue
        values = [call.get(name) for call in over_time]
        changes = not all(same(later, value) for later in values)
        if isinstance(value, Tensor):
            kind = "arguments" if name in by_branch else "shared"
            if all(isinstance(later, Tensor) and later.shape == value.shape for later in values):
                prefix, kept = _over_time(values, lengths)
                tensors[f"{prefix}{kind}.{name}"] = kept
                continue
        elif isinstance(value, tuple) and any(isinstance(item, Tensor | tuple) for item in value):
            tensors |= dict(_leaves(f"shared.{name}", value))
        else:
            plain[name] = value
        if changes:
            raise PipelineError(f"argument {name!r} of the transformer changes from step to step")
    lists = [name for name, value in plain.items() if isinstance(value, list)]
    return tensors, {"arguments": plain, "lists": lists}


def _over_time(values: Sequence[Tensor], lengths: Sequence[int]) -> tuple[str, Tensor]:
    """What is kept of a tensor, given as it is in each step: it, one a section, or one a step; and how its name begins."""
    if all(same(value, values[0]) for value in values):
        return "", values[0]
    starts = [sum(lengths[:section]) for section in range(len(lengths))]
    if all(same(value, values[starts[section_of(lengths, step)]]) for step, value in enumerate(values)):
        return SECTIONS, torch.stack([values[start] for start in starts])
    return STEPS, torch.stack(list(values))


def _parted(inputs: Sequence[Tensor], channels: int, axis: int) -> tuple[list[Tensor], list[Tensor]]:
    """What the transformer is given, [B, …] a step, parted into x_t and what a pipeline puts behind it in the channels."""
    more = inputs[0].shape[axis] - channels
    if more == 0:
        return list(inputs), []
    return [one.narrow(axis, 0, channels) for one in inputs], [one.narrow(axis, channels, more) for one in inputs]


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


def _last_row(value: Tensor) -> Tensor:
    return value[-1] if value.ndim else value
