"""Scores a demo pipeline: generate clips for prompts it never saw and read them back from their pixels.

``python -m s2q.demo.check --clips 128`` prints the scores as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline

from s2q.demo import GENERATION, pipeline_dir
from s2q.demo.readback import scores
from s2q.demo.scenes import evaluation_prompts
from s2q.demo.text import MAX_TEXT_TOKENS


def generate(
    pipeline: CogVideoXPipeline, prompts: list[str], *, seed: int = 0, batch: int = 32, **settings: float
) -> torch.Tensor:
    """One clip per prompt: uint8 [N, F, H, W, 3]. A clip depends on ``seed`` and its place in the list.

    Args:
        pipeline: the demo pipeline, perhaps quantized.
        prompts: what to show.
        seed: of the first clip's noise; each next clip has the next one.
        batch: how many clips are made at a time.
        settings: for the pipeline, in place of those of ``GENERATION``.
    """
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        video = pipeline(
            part,
            generator=[torch.Generator().manual_seed(seed + first + index) for index in range(len(part))],
            max_sequence_length=MAX_TEXT_TOKENS,
            output_type="pt",
            **{**GENERATION, **settings},
        ).frames
        parts.append((video.float() * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu())
    return torch.cat(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=128, help="how many clips to make and read back (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--pipeline", type=Path, default=None, help="another folder than the bundled pipeline's")
    parser.add_argument("--guidance-scale", type=float, default=GENERATION["guidance_scale"])
    parser.add_argument("--steps", type=int, default=GENERATION["num_inference_steps"])
    arguments = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(arguments.pipeline or pipeline_dir())
    prompts = evaluation_prompts(arguments.clips)
    clips = generate(
        pipeline,
        prompts,
        seed=arguments.seed,
        guidance_scale=arguments.guidance_scale,
        num_inference_steps=arguments.steps,
    )
    print(json.dumps({"clips": len(prompts), "seed": arguments.seed, **scores(clips, prompts)}, indent=2))


if __name__ == "__main__":
    main()
