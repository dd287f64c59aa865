"""What the full-precision pipeline feeds its transformer, as `recording` wrote it, found by (prompt, step, branch).

One safetensors file a prompt, memory-mapped when read:

    latents            [T+1, …]   x_t before each step, and what the last step leaves; guidance branches share it
                                  (of a pipeline that makes a clip in sections, one section after another)
    timesteps          [T] or, where each token or frame has a time of its own, [T, …]
    condition          [B, …]     what stands beside x_t in further channels, such as an image's latents; of every step
    arguments.NAME     [B, …]     conditioning, one row a branch (unconditional first, as CogVideoX batches them)
    shared.NAME        any        tensors without a branch, such as rotary angles; NAME.0.1 in tuples of tuples
    steps.arguments.NAME, steps.shared.NAME   [T, …]   the same, where they change from step to step (sound)
                                  (also x_t and times themselves, in calls that do not share those above)
    sections.arguments.NAME, …                [R, …]   the same, where they change from section to section (history)

Where a step is several calls (LTX-2 perturbs its transformer for more guidance), `call-1.` and so on stand before all but
`latents` and `timesteps` of the second and later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from s2q.storage import read_metadata

Branch = Literal["both", "uncond", "cond"]
STEPS, SECTIONS = "steps.", "sections."
"""What names of tensors begin with that change from step to step, or from section to section."""


def trajectory_path(folder: Path, prompt: int) -> Path:
    """File of the trajectory of prompt number `prompt`."""
    return folder / f"prompt-{prompt:04d}.safetensors"


def recorded(folder: Path, prompt: int) -> Mapping[str, Any]:
    """What stands beside the tensors of a prompt's file; empty where that is missing or damaged."""
    return read_metadata(trajectory_path(folder, prompt)) or {}


def section_of(lengths: Sequence[int], step: int) -> int:
    """Which section step number `step` of all belongs to."""
    if not 0 <= step < sum(lengths):
        raise IndexError(f"step {step} of {sum(lengths)}")
    return next(section for section in range(len(lengths)) if step < sum(lengths[: section + 1]))


def name_before(call: int) -> str:
    """What the names of the tensors of call number `call` of a step begin with."""
    return f"call-{call}." if call else ""


def _nested(places: Mapping[tuple[int, ...], Tensor]) -> Any:
    """The opposite of `_leaves`."""
    if () in places:
        return places[()]
    items: dict[int, dict[tuple[int, ...], Tensor]] = {}
    for (first, *rest), tensor in places.items():
        items.setdefault(first, {})[tuple(rest)] = tensor
    return tuple(_nested(items[index]) for index in sorted(items))


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
        """x_t over the steps: [T+1, …] without a batch dimension; the last row is the finished latent.

        Of several sections, the rows of one after those of another: each has a finished latent of its own.
        """
        with self._open(prompt) as file:
            return file.get_tensor("latents")

    def sections(self, prompt: int) -> tuple[Tensor, ...]:
        """`latents` of each section of the clip by itself."""
        return self.latents(prompt).split([length + 1 for length in self._metadata(prompt)["sections"]])

    def progress(self, prompt: int, step: int) -> float:
        """How far denoising is at a step, in its section: 0 at the first, towards 1 at the last."""
        lengths = self._metadata(prompt)["sections"]
        section = section_of(lengths, step)
        return (step - sum(lengths[:section])) / lengths[section]

    def seconds(self) -> float:
        """Time that recording took, summed over prompts (and over interrupted runs)."""
        return sum(self._metadata(prompt)["seconds"] for prompt in range(self.prompts))

    def _metadata(self, prompt: int) -> Mapping[str, Any]:
        metadata = recorded(self.folder, prompt)
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
        made, section = metadata["calls"][call], section_of(metadata["sections"], step)
        # JSON has no tuples.
        arguments = {
            name: tuple(value) if isinstance(value, list) and name not in made["lists"] else value
            for name, value in made["arguments"].items()
        }
        with self._open(prompt) as file:
            latents = file.get_slice("latents")[step + section : step + section + 1]
            timestep = file.get_slice("timesteps")[step : step + 1]
            shared: dict[str, dict[tuple[int, ...], Tensor]] = {}
            condition = None
            for name in sorted(file.keys()):
                if not name.startswith(name_before(call)):
                    continue
                own = name.removeprefix(name_before(call))
                kind, _, rest = own.removeprefix(STEPS).removeprefix(SECTIONS).partition(".")
                if kind not in ("arguments", "condition", "shared"):
                    continue
                if own.startswith((STEPS, SECTIONS)):
                    value = file.get_slice(name)[step if own.startswith(STEPS) else section]
                else:
                    value = file.get_tensor(name)
                if kind == "shared":
                    argument, *places = rest.split(".")
                    shared.setdefault(argument, {})[tuple(map(int, places))] = value
                    continue
                if branch != "both":
                    rows = len(value) // made["branches"]
                    value = value[:rows] if branch == "uncond" else value[-rows:]
                if kind == "condition":
                    condition = value
                else:
                    arguments[rest] = value
        arguments |= {name: _nested(places) for name, places in shared.items()}
        branches = made["branches"] if branch == "both" else 1
        latents = latents.expand(branches, *latents.shape[1:])
        if condition is not None:
            latents = torch.cat([latents, condition], dim=metadata["channels"])
        own = {self.latents_name: latents, self.timestep_name: timestep.expand(branches, *timestep.shape[1:])}
        return own | arguments
