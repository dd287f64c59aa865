"""Scores a demo pipeline: generate clips for prompts it never saw and read them back from their pixels.

``python -m s2q.demo.check --family wan --clips 128`` prints the scores as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from s2q.demo import GENERATION, pipeline_dir
from s2q.demo.readback import scores
from s2q.demo.scenes import evaluation_prompts


def generate(
    pipeline: DiffusionPipeline,
    prompts: list[str],
    family: str = "cogvideox",
    *,
    seed: int = 0,
    batch: int = 32,
    **settings: Any,
) -> torch.Tensor:
    """One clip per prompt: uint8 [N, F, H, W, 3]. A clip depends on ``seed`` and its place in the list.

    Args:
        pipeline: a demo pipeline, perhaps quantized.
        prompts: what to show.
        family: which demo it is.
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
            output_type="pt",
            **{**GENERATION[family], **settings},
        ).frames
        parts.append((video.float() * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu())
    return torch.cat(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(GENERATION), default="cogvideox", help="which demo")
    parser.add_argument("--clips", type=int, default=128, help="how many clips to make and read back (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--pipeline", type=Path, default=None, help="another folder than the demo's own")
    parser.add_argument("--guidance-scale", type=float, default=None, help="in place of the demo's own")
    parser.add_argument("--steps", type=int, default=None, help="in place of the demo's own")
    arguments = parser.parse_args()
    asked = {"guidance_scale": arguments.guidance_scale, "num_inference_steps": arguments.steps}
    pipeline = DiffusionPipeline.from_pretrained(arguments.pipeline or pipeline_dir(arguments.family))
    prompts = evaluation_prompts(arguments.clips)
    clips = generate(
        pipeline,
        prompts,
        arguments.family,
        seed=arguments.seed,
        **{name: value for name, value in asked.items() if value is not None},
    )
    report = {"family": arguments.family, "clips": len(prompts), "seed": arguments.seed}
    print(json.dumps({**report, **scores(clips, prompts)}, indent=2))


if __name__ == "__main__":
    main()
