"""The clips of a comparison: full precision once for all cells, and what each cell's clips measure against them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2q.evaluation.appearance import appearance
from s2q.evaluation.metrics import Pair, measure
from s2q.memory import in_chunks
from s2q.models.pipelines import OpenPipeline
from s2q.progress import Progress
from s2q.prompts import readback_of
from s2q.storage import read_metadata, write_tensors
from s2q.twins import generate_batch, relative_errors


def _make(opened: OpenPipeline, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Tensor]:
    """The clips of a batch, made together, or fewer at a time if they are too many for the memory."""
    made: list[dict[str, Tensor]] = []

    def make(part: slice) -> None:
        steps: list[Tensor] = []
        clips = generate_batch(opened, prompts[part], seeds[part], lambda latents: steps.append(latents.float().cpu()))
        made.append({"clips": torch.from_numpy(clips), "latents": torch.stack(steps, dim=1)})

    in_chunks(len(prompts), len(prompts), make)
    return {name: torch.cat([some[name] for some in made]) for name in made[0]}


def _batches(prompts: Sequence[str], size: int) -> Iterator[tuple[int, list[str], list[int]]]:
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        yield start // size, part, list(range(start, start + len(part)))


def float_path(folder: Path, index: int) -> Path:
    """File of a batch of full-precision clips: clips uint8 [N, F, H, W, 3], latents [N, T, …] after each step."""
    return folder / f"batch-{index:04d}.safetensors"


def make_float_clips(
    opened: OpenPipeline, prompts: Sequence[str], batch: int, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Make the full-precision clips that are missing, the n-th from seed n; what each is by itself, one row a clip."""
    rows = []
    with progress.stage("full precision", len(prompts)) as stage:
        for index, part, seeds in _batches(prompts, batch):
            path = float_path(folder, index)
            if read_metadata(path) is None:
                write_tensors(path, _make(opened, part, seeds), {"prompts": part})
            for prompt, clip in zip(part, load_file(path)["clips"], strict=True):
                rows.append({"prompt": prompt, **_by_itself(opened, prompt, clip)})
            stage.advance(len(part))
    return rows


def measure_cell(
    opened: OpenPipeline, candidate: nn.Module, prompts: Sequence[str], batch: int, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Make the clips of the quantized transformer `candidate` and measure each against its twin, one row a clip.

    Args:
        folder: of `make_float_clips`, with the same prompts and batch.
    """
    rows = []
    with opened.using(candidate.eval()), progress.stage("clips", len(prompts)) as stage:
        for index, part, seeds in _batches(prompts, batch):
            ours, theirs = _make(opened, part, seeds), load_file(float_path(folder, index))
            for k, prompt in enumerate(part):
                a, b = theirs["latents"][k], ours["latents"][k]
                pair = Pair(theirs["clips"][k], ours["clips"][k], a[-1], b[-1], relative_errors(a, b))
                rows.append({"prompt": prompt, **measure(pair), **_by_itself(opened, prompt, ours["clips"][k])})
            stage.advance(len(part))
    return rows


def _by_itself(opened: OpenPipeline, prompt: str, clip: Tensor) -> dict[str, Any]:
    """What a clip looks like, and, in the demos' world, whether it shows what its prompt says (1 or 0)."""
    read = readback_of(opened.source, prompt, clip)
    return appearance(clip.numpy()) | {f"readback_{name}": float(right) for name, right in read.items()}
