"""Trains a Wan or a HunyuanVideo demo on the latents of the bundled CogVideoX demo's autoencoder.

First transformer and text encoders together on those latents; then, for a family that is called once a step, guidance is
taught to that one call, as in the released HunyuanVideo; then the family's own autoencoder is taught the latents, decoder
before encoder; then the export. Every stage is checkpointed in the work folder, and resumed from there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import nn

from s2q.demo import pipeline_dir
from s2q.demo.distillation import (
    Pairs,
    decoder_part,
    encoder_part,
    quieten,
    taught_decoder_loss,
    taught_encoder_loss,
)
from s2q.demo.export import export_pipeline
from s2q.demo.flow import FlowFamily, flow_loss, guidance_loss
from s2q.demo.latents import LatentClips, encode_training_clips
from s2q.demo.loop import Plan, fit
from s2q.demo.stages import seconds_a_step

_GUIDANCE_SHARE = 0.1
_DECODER_SHARE = 0.2
_ENCODER_SHARE = 0.05
_DIFFUSION_RATE = 2e-3
_GUIDANCE_RATE = 5e-4
_AUTOENCODER_RATE = 2e-3


@dataclass(frozen=True)
class FlowSizes:
    """How large the models and the training set are, the demos' by default, and where the weights begin."""

    start: Path | None = None
    """A pipeline of these sizes to begin with; None begins with nothing."""
    denoiser: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    diffusion_batch: int = 16
    autoencoder_batch: int = 4
    clips_per_scene: int = 64
    autoencoder_clips_per_scene: int = 16


@dataclass(frozen=True)
class FlowSteps:
    """How many optimizer steps each stage takes; ``guidance`` is 0 for a family that is not taught any."""

    diffusion: int
    guidance: int
    decoder: int
    encoder: int


def _build_denoiser(family: FlowFamily, sizes: FlowSizes, device: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    denoiser = family.build_denoiser(**sizes.denoiser)
    if sizes.start is not None:
        for name, part in denoiser.items():
            _start_from(sizes.start / name, part)
    return denoiser.to(device)


def _build_autoencoder(family: FlowFamily, clips: LatentClips, sizes: FlowSizes, device: str) -> nn.Module:
    torch.manual_seed(0)
    autoencoder = family.build_autoencoder(clips, **sizes.autoencoder)
    if sizes.start is not None:
        _start_from(sizes.start / "vae", autoencoder)
    return quieten(autoencoder).to(device)


def _start_from(folder: Path, part: nn.Module) -> None:
    """Give ``part`` the weights of the same part of a pipeline, all of them."""
    part.load_state_dict(type(part).from_pretrained(folder).state_dict())


def plan_flow_steps(family: FlowFamily, minutes: float, sizes: FlowSizes, device: str) -> FlowSteps:
    """Measure this machine and share ``minutes`` between the stages."""
    clips = LatentClips(torch.randn(64, 3, 16, 8, 8).half(), torch.zeros(64, dtype=torch.int64))
    latents = clips.latents.float().transpose(1, 2)
    pairs = Pairs(torch.zeros(64, 9, 32, 32, 3, dtype=torch.uint8), latents, torch.ones(16, 1, 1, 1))
    denoiser = _build_denoiser(family, sizes, device)
    autoencoder = _build_autoencoder(family, clips, sizes, device)
    diffusion = seconds_a_step(denoiser, flow_loss(family, denoiser, clips, batch=sizes.diffusion_batch))
    batch = sizes.autoencoder_batch
    decoder = seconds_a_step(autoencoder, taught_decoder_loss(family, autoencoder, pairs, batch=batch))
    encoder = seconds_a_step(autoencoder, taught_encoder_loss(autoencoder, pairs, batch=batch))
    seconds = minutes * 60
    guidance_share = _GUIDANCE_SHARE if family.taught_guidance > 1 else 0
    return FlowSteps(
        diffusion=max(1, round(seconds * (1 - guidance_share - _DECODER_SHARE - _ENCODER_SHARE) / diffusion)),
        # The teacher's two calls cost about as much as the step itself: each is a third of one, forward and backward.
        guidance=round(seconds * guidance_share / (2 * diffusion)),
        decoder=max(1, round(seconds * _DECODER_SHARE / decoder)),
        encoder=max(1, round(seconds * _ENCODER_SHARE / encoder)),
    )


def training_latents(sizes: FlowSizes, work: Path) -> LatentClips:
    """The training set through the bundled demo's autoencoder, encoded once."""
    source = AutoencoderKLCogVideoX.from_pretrained(pipeline_dir("cogvideox"), subfolder="vae")
    return encode_training_clips(source, sizes.clips_per_scene, work / "latents.pt")


def train_flow_denoiser(
    family: FlowFamily,
    work: Path,
    clips: LatentClips,
    steps: int,
    sizes: FlowSizes,
    device: str = "cpu",
    stop_after: int | None = None,
) -> nn.ModuleDict:
    """The first stage, resumed from ``work`` if it was begun."""
    denoiser = _build_denoiser(family, sizes, device)
    loss = flow_loss(family, denoiser, clips, batch=sizes.diffusion_batch)
    return fit(
        denoiser,
        loss,
        Plan("diffusion", steps, _DIFFUSION_RATE, seed=1),
        work / "diffusion.pt",
        stop_after=stop_after,
    )


def teach_guidance(
    family: FlowFamily,
    work: Path,
    denoiser: nn.ModuleDict,
    clips: LatentClips,
    steps: int,
    sizes: FlowSizes,
    stop_after: int | None = None,
) -> None:
    """The second stage, in place, resumed from ``work`` if it was begun: one call learns what two make together."""
    teacher = copy.deepcopy(denoiser).requires_grad_(False)
    loss = guidance_loss(family, denoiser, teacher, clips, batch=sizes.diffusion_batch)
    plan = Plan("guidance", steps, _GUIDANCE_RATE, average_decay=0.99, seed=3)
    fit(denoiser, loss, plan, work / "guidance.pt", stop_after=stop_after)


def teach_autoencoder(
    family: FlowFamily,
    work: Path,
    clips: LatentClips,
    steps: FlowSteps,
    sizes: FlowSizes,
    device: str = "cpu",
    stop_after: int | None = None,
) -> nn.Module:
    """The last two stages, resumed from ``work`` if they were begun."""
    autoencoder = _build_autoencoder(family, clips, sizes, device)
    pairs = Pairs.of(clips, min(sizes.autoencoder_clips_per_scene, sizes.clips_per_scene))
    batch = sizes.autoencoder_batch
    for name, part, count, loss in (
        ("decoder", decoder_part, steps.decoder, taught_decoder_loss(family, autoencoder, pairs, batch=batch)),
        ("encoder", encoder_part, steps.encoder, taught_encoder_loss(autoencoder, pairs, batch=batch)),
    ):
        plan = Plan(name, count, _AUTOENCODER_RATE, seed=2)
        fit(part(autoencoder), loss, plan, work / f"{name}.pt", stop_after=stop_after)
    return autoencoder.eval()


def train_flow(
    family: FlowFamily,
    output: Path,
    work: Path,
    steps: FlowSteps,
    sizes: FlowSizes,
    device: str = "cpu",
    *,
    export_now: bool = False,
) -> None:
    """All stages and the export of what they made.

    Args:
        family: which demo.
        output: the pipeline's folder, replaced as a whole.
        work: checkpoints and encoded training clips, to resume from.
        steps: the length of each stage.
        sizes: of models and training set.
        device: ``cpu`` or ``cuda``.
        export_now: take no further step; export what the last checkpoints hold.

    Raises:
        FileNotFoundError: ``export_now`` before there is a transformer and a decoder to export.
    """
    missing = [name for name in ("diffusion.pt", "decoder.pt") if not (work / name).exists()]
    if export_now and missing:
        raise FileNotFoundError(f"nothing to export yet: {work} holds no {' and no '.join(missing)}")
    stop_after = 0 if export_now else None
    clips = family.own_latents(training_latents(sizes, work))
    denoiser = train_flow_denoiser(family, work, clips, steps.diffusion, sizes, device, stop_after)
    if steps.guidance:
        teach_guidance(family, work, denoiser, clips, steps.guidance, sizes, stop_after)
    autoencoder = teach_autoencoder(family, work, clips, steps, sizes, device, stop_after)
    export_pipeline(family.assemble(autoencoder, denoiser), output)
    print(f"exported to {output}")
