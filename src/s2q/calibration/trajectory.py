"""Record what the full-precision pipeline feeds its transformer, and find it again by (prompt, step, branch).

One safetensors file a prompt, memory-mapped when read:

    latents            [T+1, …]   x_t before each step, and what the last step leaves; guidance branches share it
    timesteps          [T]
    arguments.NAME     [B, …]     conditioning, one row a branch (unconditional first, as diffusers batches them)
    shared.NAME        any        tensors without a branch, such as rotary angles
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from s2q.models.pipelines import OpenPipeline
from s2q.progress import Progress
from s2q.storage import derived_seed, read_metadata, write_tensors

Branch = Literal["both", "uncond", "cond"]


def trajectory_path(folder: Path, prompt: int) -> Path:
    """File of the trajectory of prompt number `prompt`."""
    return folder / f"prompt-{prompt:04d}.safetensors"


def record_trajectories(
    opened: OpenPipeline, prompts: Sequence[str], seed: int, folder: Path, progress: Progress
) -> "TrajectoryStore":
    """Run the pipeline once a prompt; prompts whose file is there already are skipped.

    Raises:
        RuntimeError: the pipeline calls its transformer in a way that cannot be addressed by (step, branch).
    """
    with progress.stage("trajectories", len(prompts)) as stage:
        for index, prompt in enumerate(prompts):
            path = trajectory_path(folder, index)
            if read_metadata(path) is None:
                started = time.perf_counter()
                tensors, plain = _record(opened, prompt, derived_seed(seed, "trajectory", index))
                seconds = time.perf_counter() - started
                write_tensors(path, tensors, {"prompt": prompt, "arguments": plain, "seconds": seconds})
            stage.advance()
    return TrajectoryStore(folder, len(prompts), opened.family.latents, opened.family.timestep)


def _record(opened: OpenPipeline, prompt: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of one prompt's file, and the transformer's plain arguments (None, bool, number)."""
    family, calls = opened.family, []

    def hook(module, args, kwargs):
        if args:
            raise RuntimeError("the pipeline passes positional arguments to its transformer; keywords are needed")
        calls.append({name: _detached(value) for name, value in kwargs.items()})

    handle = opened.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        generator = torch.Generator().manual_seed(seed)
        final = opened.pipe(prompt, generator=generator, output_type="latent", return_dict=False, **opened.call)[0]
    finally:
        handle.remove()
    first = calls[0]
    branches = first[family.latents].shape[0]
    tensors = {
        "latents": torch.cat([call[family.latents][:1] for call in calls] + [final.to(first[family.latents].dtype)]),
        "timesteps": torch.stack([call[family.timestep].flatten()[0] for call in calls]),
    }
    plain: dict[str, Any] = {}
    for name, value in first.items():
        if name in (family.latents, family.timestep):
            continue
        if isinstance(value, Tensor):
            kind = "arguments" if value.ndim and value.shape[0] == branches else "shared"
            tensors[f"{kind}.{name}"] = value
        elif isinstance(value, tuple):
            tensors |= {f"shared.{name}.{index}": item for index, item in enumerate(value)}
        else:
            plain[name] = value
        if any(not _same(call.get(name), value) for call in calls):
            raise RuntimeError(f"argument {name!r} of the transformer changes from step to step")
    return tensors, plain


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
        """[T] of one prompt, in the order they are run (most noise first)."""
        with self._open(prompt) as file:
            return file.get_tensor("timesteps")

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
        arguments: dict[str, Any] = dict(self._metadata(prompt)["arguments"])
        with self._open(prompt) as file:
            latents = file.get_slice("latents")[step : step + 1]
            timestep = file.get_slice("timesteps")[step : step + 1]
            tuples: dict[str, list[Tensor]] = {}
            branches = 1
            for name in sorted(file.keys()):
                kind, _, rest = name.partition(".")
                if kind == "arguments":
                    value = file.get_tensor(name)
                    if branch != "both":
                        value = value[:1] if branch == "uncond" else value[-1:]
                    branches = value.shape[0]
                    arguments[rest] = value
                elif kind == "shared" and rest.rpartition(".")[2].isdigit():
                    tuples.setdefault(rest.rpartition(".")[0], []).append(file.get_tensor(name))
                elif kind == "shared":
                    arguments[rest] = file.get_tensor(name)
        arguments |= {name: tuple(items) for name, items in tuples.items()}
        arguments[self.latents_name] = latents.expand(branches, *latents.shape[1:])
        arguments[self.timestep_name] = timestep.expand(branches)
        return arguments
