"""Trains a demo pipeline from nothing: ``python -m s2q.demo.train --family cogvideox --minutes 90``.

For CogVideoX first the autoencoder, then transformer and text encoder together on its latents, then the decoder once
more for latents that are a little off, then the export; for the other families see :mod:`s2q.demo.train_flow`. Every
stage is checkpointed in the work folder, and the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn

from s2q.demo import GENERATION, expected_dir
from s2q.demo.autoencoder import autoencoder_loss, build_autoencoder, decoder_loss
from s2q.demo.cogvideox import ExplicitAttention, assemble, build_denoiser, diffusion_loss
from s2q.demo.export import export_pipeline
from s2q.demo.flow import FlowFamily
from s2q.demo.hunyuanvideo import HUNYUANVIDEO
from s2q.demo.latents import LatentClips, encode_training_clips
from s2q.demo.loop import Plan, fit
from s2q.demo.stages import planned_steps, seconds_a_step
from s2q.demo.train_flow import FlowSizes, FlowSteps, plan_flow_steps, train_flow
from s2q.demo.wan import WAN

FLOW_FAMILIES: Final[dict[str, FlowFamily]] = {family.name: family for family in (WAN, HUNYUANVIDEO)}
_AUTOENCODER_SHARE = 0.25
_DECODER_SHARE = 0.1
_AUTOENCODER_RATE = 2e-3
_DIFFUSION_RATE = 2e-3
_DECODER_RATE = 1e-3


@dataclass(frozen=True)
class Sizes:
    """How large the models and the training set are; the defaults are the bundled pipeline's."""

    autoencoder_channels: tuple[int, ...] = (16, 32, 64)
    autoencoder_batch: int = 8
    heads: int = 5
    layers: int = 6
    diffusion_batch: int = 32
    clips_per_scene: int = 64


@dataclass(frozen=True)
class Steps:
    """How many optimizer steps each stage takes."""

    autoencoder: int
    diffusion: int
    decoder: int


def plan_steps(minutes: float, sizes: Sizes, device: str) -> Steps:
    """Measure this machine and share ``minutes`` between the stages."""
    autoencoder = build_autoencoder(sizes.autoencoder_channels).to(device)
    denoiser = _denoiser(sizes, device)
    clips = LatentClips(torch.randn(64, 3, 16, 8, 8), torch.zeros(64, dtype=torch.int64))
    autoencoder_seconds = seconds_a_step(autoencoder, autoencoder_loss(autoencoder, batch=sizes.autoencoder_batch))
    diffusion_seconds = seconds_a_step(denoiser, diffusion_loss(denoiser, clips, batch=sizes.diffusion_batch))
    return Steps(
        autoencoder=max(1, int(minutes * 60 * _AUTOENCODER_SHARE / autoencoder_seconds)),
        diffusion=max(1, int(minutes * 60 * (1 - _AUTOENCODER_SHARE - _DECODER_SHARE) / diffusion_seconds)),
        # Timed as a step of the whole autoencoder, which is a little too long.
        decoder=max(1, int(minutes * 60 * _DECODER_SHARE / autoencoder_seconds)),
    )


def _denoiser(sizes: Sizes, device: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    denoiser = build_denoiser(sizes.heads, sizes.layers).to(device)
    denoiser["transformer"].set_attn_processor(ExplicitAttention())
    return denoiser


def train_autoencoder(
    work: Path, steps: int, sizes: Sizes, device: str, stop_after: int | None = None
) -> AutoencoderKLCogVideoX:
    """The first stage, resumed from ``work`` if it was begun."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder(sizes.autoencoder_channels).to(device)
    plan = Plan("autoencoder", steps, _AUTOENCODER_RATE)
    loss = autoencoder_loss(autoencoder, batch=sizes.autoencoder_batch)
    return fit(autoencoder, loss, plan, work / "autoencoder.pt", stop_after=stop_after)


def train_denoiser(
    work: Path, clips: LatentClips, steps: int, sizes: Sizes, device: str, stop_after: int | None = None
) -> nn.ModuleDict:
    """The second stage, resumed from ``work`` if it was begun."""
    denoiser = _denoiser(sizes, device)
    plan = Plan("diffusion", steps, _DIFFUSION_RATE, seed=1)
    loss = diffusion_loss(denoiser, clips, batch=sizes.diffusion_batch)
    return fit(denoiser, loss, plan, work / "diffusion.pt", stop_after=stop_after)


def refine_decoder(
    work: Path,
    autoencoder: AutoencoderKLCogVideoX,
    steps: int,
    sizes: Sizes,
    stop_after: int | None = None,
) -> None:
    """The third stage, in place: the decoder alone, on noisy latents. Encoder and latents stay as they are."""
    plan = Plan("decoder", steps, _DECODER_RATE, seed=2)
    loss = decoder_loss(autoencoder, batch=sizes.autoencoder_batch)
    fit(autoencoder.decoder, loss, plan, work / "decoder.pt", stop_after=stop_after)


def train(
    output: Path, work: Path, steps: Steps, sizes: Sizes, device: str = "cpu", *, export_now: bool = False
) -> None:
    """All stages and the export of what they made.

    Args:
        output: the pipeline's folder, replaced as a whole.
        work: checkpoints and encoded training clips, to resume from.
        steps: the length of each stage.
        sizes: of models and training set.
        device: ``cpu`` or ``cuda``.
        export_now: take no further step; export what the last checkpoints hold.
    """
    if export_now and not (work / "diffusion.pt").exists():
        raise FileNotFoundError(f"nothing to export yet: {work} holds no checkpoint of the second stage")
    autoencoder = train_autoencoder(work, steps.autoencoder, sizes, device)
    clips = encode_training_clips(autoencoder, sizes.clips_per_scene, work / "latents.pt")
    autoencoder.register_to_config(scaling_factor=clips.scaling_factor)
    stop_after = 0 if export_now else None
    denoiser = train_denoiser(work, clips, steps.diffusion, sizes, device, stop_after)
    refine_decoder(work, autoencoder, steps.decoder, sizes, stop_after)
    export_pipeline(assemble(autoencoder, denoiser), output)
    print(f"exported to {output}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(GENERATION), default="cogvideox", help="which demo to train")
    parser.add_argument("--minutes", type=float, default=90, help="optimizer time of a new run (default: 90)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="the pipeline's folder (default: the demo's own)")
    parser.add_argument("--work", type=Path, default=None, help="checkpoints (default: runs/demo-FAMILY); resumed from")
    parser.add_argument("--start", type=Path, default=None, help="begin with a trained pipeline (wan, hunyuanvideo)")
    parser.add_argument("--export-now", action="store_true", help="export the last checkpoint without training on")
    arguments = parser.parse_args()
    device, minutes = arguments.device, arguments.minutes
    output = arguments.output or expected_dir(arguments.family)
    work = arguments.work or Path("runs") / f"demo-{arguments.family}"
    if arguments.family == "cogvideox":
        if arguments.start is not None:
            parser.error("--start is for wan and hunyuanvideo: cogvideox is trained from nothing")
        sizes = Sizes()
        counts = planned_steps(work, lambda: asdict(plan_steps(minutes, sizes, device)))
        run = partial(train, output, work, Steps(**counts), sizes)
    else:
        family, flow_sizes = FLOW_FAMILIES[arguments.family], FlowSizes(start=arguments.start)
        counts = planned_steps(work, lambda: asdict(plan_flow_steps(family, minutes, flow_sizes, device)))
        run = partial(train_flow, family, output, work, FlowSteps(**counts), flow_sizes)
    print(f"optimizer steps: {counts}")
    run(device, export_now=arguments.export_now)


if __name__ == "__main__":
    main()
