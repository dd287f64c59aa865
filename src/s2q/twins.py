"""Make the same clips with the full-precision transformer and with the quantized one: same prompt, same noise."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2q.evaluation.sound import Sound
from s2q.media import described, media_of, read_media
from s2q.models.pipelines import OpenPipeline
from s2q.models.steps import steps_told
from s2q.progress import Progress
from s2q.storage import read_metadata, write_tensors


@dataclass(frozen=True, eq=False)
class Twin:
    """One prompt and seed, generated twice."""

    prompt: str
    seed: int
    reference: np.ndarray
    """uint8 [F, H, W, 3], full precision."""
    candidate: np.ndarray
    """uint8 [F, H, W, 3], quantized."""
    reference_latents: np.ndarray
    """float32, the finished latent."""
    candidate_latents: np.ndarray
    step_errors: list[float]
    """‖x_t − x̂_t‖² / ‖x_t‖² after each denoising step, [T]."""
    seconds: tuple[float, float]
    """Time of the clip, full precision and quantized."""
    reference_sound: Sound | None = None
    candidate_sound: Sound | None = None
    """What is heard beside each, if the pipeline makes sound."""


def generate(
    opened: OpenPipeline, prompt: str, seed: int, on_step: Callable[[Tensor], None] = lambda latents: None
) -> np.ndarray:
    """One clip, uint8 [F, H, W, 3].

    Args:
        on_step: receives the latents after each denoising step.
    """
    return generate_batch(opened, [prompt], [seed], on_step)[0]


def generate_with_sound(
    opened: OpenPipeline, prompt: str, seed: int, on_step: Callable[[Tensor], None] = lambda latents: None
) -> tuple[np.ndarray, Sound | None]:
    """`generate`, and what is heard beside it; None of a pipeline without sound."""
    frames, *more = _call(opened, prompt, torch.Generator().manual_seed(seed), on_step)
    rate = opened.sampling_rate
    sound = None if rate is None else Sound(more[0][0].float().cpu().numpy(), rate)
    return _as_bytes(frames)[0], sound


def generate_batch(
    opened: OpenPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    on_step: Callable[[Tensor], None] = lambda latents: None,
) -> np.ndarray:
    """One clip a prompt, made together: uint8 [N, F, H, W, 3].

    A clip of a batch is the clip alone but for the rounding of floating-point sums.
    """

    several = len(prompts) > 1  # some pipelines take no lists (Wan VACE)
    if several and any(map(media_of, prompts)):
        return _one_by_one(opened, prompts, seeds, on_step)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    given = (list(prompts), generators) if several else (prompts[0], generators[0])
    return _as_bytes(_call(opened, *given, on_step)[0])


def _call(
    opened: OpenPipeline,
    prompt: str | list[str],
    generator: torch.Generator | list[torch.Generator],
    on_step: Callable[[Tensor], None],
) -> tuple[Any, ...]:
    """What the pipeline makes: frames, 0 … 1, and of some a sound."""
    with steps_told(opened.pipe, on_step) as told:
        return opened.pipe(
            prompt=prompt,
            generator=generator,
            output_type="np",
            return_dict=False,
            **told,
            **({} if isinstance(prompt, list) else read_media(prompt)),
            **opened.call,
        )


def _as_bytes(frames: Any) -> np.ndarray:
    return (np.asarray(frames) * 255).round().clip(0, 255).astype(np.uint8)


def _one_by_one(
    opened: OpenPipeline, prompts: Sequence[str], seeds: Sequence[int], on_step: Callable[[Tensor], None]
) -> np.ndarray:
    """As `generate_batch`: hardly a pipeline takes several images for several prompts."""
    steps: list[list[Tensor]] = [[] for _ in prompts]
    clips = [
        generate(opened, prompt, seed, left.append) for prompt, seed, left in zip(prompts, seeds, steps, strict=True)
    ]
    for left in zip(*steps, strict=True):
        on_step(torch.cat(left))
    return np.stack(clips)


def make_twins(
    opened: OpenPipeline,
    candidate: nn.Module,
    prompts: Sequence[str],
    seed: int,
    folder: Path,
    progress: Progress,
    second: nn.Module | None = None,
) -> list[Twin]:
    """One pair of clips a prompt, the n-th from seed `seed` + n; pairs whose file is there already are read.

    Args:
        candidate: the quantized transformer; `opened` holds the full-precision one and is given back with it.
        second: a quantized `transformer_2` that works together with it.
    """
    twins = []
    with progress.stage("evaluation", len(prompts)) as stage:
        for index, prompt in enumerate(prompts):
            path = folder / f"clip-{index:04d}.safetensors"
            done = read_metadata(path)
            if done is None or (done["prompt"], done["seed"]) != (described(prompt), seed + index):
                _make(opened, candidate, second, prompt, seed + index, path)
            metadata, tensors = read_metadata(path), load_file(path)
            sides = {
                name: Sound(tensor.numpy(), opened.sampling_rate) if name.endswith("_sound") else tensor.numpy()
                for name, tensor in tensors.items()
                if name != "step_errors"
            }
            twins.append(
                Twin(
                    prompt=prompt,
                    seed=metadata["seed"],
                    seconds=tuple(metadata["seconds"]),
                    step_errors=tensors["step_errors"].tolist(),
                    **sides,
                )
            )
            stage.advance()
    return twins


def relative_errors(reference: Tensor, candidate: Tensor) -> list[float]:
    """‖x_t − x̂_t‖² / ‖x_t‖² of the latents after each of T steps: [T, …] and [T, …] → T numbers."""
    lost = (reference - candidate).flatten(1).square().sum(1)
    return (lost / reference.flatten(1).square().sum(1)).tolist()


def _make(
    opened: OpenPipeline, candidate: nn.Module, second: nn.Module | None, prompt: str, seed: int, path: Path
) -> None:
    reference_steps: list[Tensor] = []
    candidate_steps: list[Tensor] = []
    started = time.perf_counter()
    reference, sound = generate_with_sound(
        opened, prompt, seed, lambda latents: reference_steps.append(latents.float().cpu())
    )
    between = time.perf_counter()
    with opened.using(candidate, second):
        quantized, other_sound = generate_with_sound(
            opened, prompt, seed, lambda latents: candidate_steps.append(latents.float().cpu())
        )
    ended = time.perf_counter()
    errors = relative_errors(torch.stack(reference_steps), torch.stack(candidate_steps))
    tensors = {
        "reference": torch.from_numpy(reference),
        "candidate": torch.from_numpy(quantized),
        "reference_latents": reference_steps[-1],
        "candidate_latents": candidate_steps[-1],
        "step_errors": torch.tensor(errors, dtype=torch.float64),
    }
    if sound is not None:
        tensors |= {
            "reference_sound": torch.from_numpy(sound.samples),
            "candidate_sound": torch.from_numpy(other_sound.samples),
        }
    seconds = [between - started, ended - between]
    write_tensors(path, tensors, {"prompt": described(prompt), "seed": seed, "seconds": seconds})
