"""Flow matching, the training that Wan and HunyuanVideo share: clip and noise mixed along a straight line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn import functional

from s2q.demo import scenes
from s2q.demo.latents import LatentClips
from s2q.demo.loop import LossFunction

SHIFT = 3.0
"""How far training and sampling lean towards the noisy end; the released pipelines of both families do so too."""

Tokens = dict[str, torch.Tensor]
"""Token tensors of a list of captions, one row a caption, as a family's text encoders take them."""


@dataclass(frozen=True)
class FlowFamily:
    """What one family of flow matching demos is made of.

    Attributes:
        name: as users call it.
        build_denoiser: sizes to an untrained ``transformer`` with its text encoders, trained together.
        tokenize: captions to token tensors, padded as the family's pipeline pads them.
        encode: a denoiser and rows of tokens to the transformer's conditions, as the family's pipeline makes them.
        own_latents: the training set in the CogVideoX demo's latents to the same in those of the family's autoencoder,
            a fixed shift and scale apart; all that follow take the latter.
        normalization: the training set to what the family's pipeline undoes before decoding: a mean and a standard
            deviation, each [C, 1, 1] or one number.
        build_autoencoder: sizes and the training set to an untrained autoencoder with that in its config.
        decode: an autoencoder and raw latents [N, C, F', H', W'] to a video [N, 3, F, H, W] in about -1..1, with
            gradients everywhere.
        taught_guidance: the guidance that the one call a step of the family's pipeline is taught to show; 1 for none.
        assemble: a trained autoencoder and denoiser to the whole pipeline.
    """

    name: str
    build_denoiser: Callable[..., nn.ModuleDict]
    tokenize: Callable[[list[str]], Tokens]
    encode: Callable[[nn.ModuleDict, Tokens], Tokens]
    own_latents: Callable[[LatentClips], LatentClips]
    normalization: Callable[[LatentClips], tuple[torch.Tensor | float, torch.Tensor | float]]
    build_autoencoder: Callable[..., Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    taught_guidance: float
    assemble: Callable[[Any, nn.ModuleDict], DiffusionPipeline]


@dataclass(frozen=True)
class _Batch:
    """One training step's clips, mixed with noise, on the device of the model."""

    mixed: torch.Tensor
    sigma: torch.Tensor
    velocity: torch.Tensor
    scene: torch.Tensor


class _Sampler:
    """Draws training steps for a denoiser, and asks it."""

    def __init__(self, family: FlowFamily, clips: LatentClips, device: torch.device, batch: int) -> None:
        captions = [scene.caption for scene in scenes.training_scenes()]
        self.no_caption = len(captions)
        self._family, self._clips, self._device, self._batch = family, clips, device, batch
        self._tokens = {name: value.to(device) for name, value in family.tokenize([*captions, ""]).items()}
        self._mean, self._std = family.normalization(clips)

    def draw(self, generator: torch.Generator) -> _Batch:
        """Clips at shifted uniform noise levels."""
        drawn = torch.randint(len(self._clips.scene), (self._batch,), generator=generator)
        latents = (self._clips.latents[drawn].float() - self._mean) / self._std
        latents = latents.transpose(1, 2).to(self._device)
        noise = torch.randn(latents.shape, generator=generator).to(self._device)
        uniform = torch.rand(self._batch, generator=generator)
        sigma = (SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).to(self._device)
        mixed = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
        return _Batch(mixed, sigma, noise - latents, self._clips.scene[drawn].to(self._device))

    def ask(self, denoiser: nn.ModuleDict, batch: _Batch, scene: torch.Tensor) -> torch.Tensor:
        """The velocity that ``denoiser`` predicts for the captions of ``scene``."""
        tokens = {name: value[scene] for name, value in self._tokens.items()}
        with torch.autocast(self._device.type, torch.bfloat16):
            conditions = self._family.encode(denoiser, tokens)
            return denoiser["transformer"](
                hidden_states=batch.mixed, timestep=batch.sigma * 1000, **conditions, return_dict=False
            )[0].float()


def flow_loss(
    family: FlowFamily,
    denoiser: nn.ModuleDict,
    clips: LatentClips,
    *,
    caption_dropout: float = 0.1,
    batch: int = 16,
) -> LossFunction:
    """Mean squared error of the predicted velocity, noise minus clip.

    Args:
        family: of the denoiser.
        denoiser: to be trained.
        clips: the training set.
        caption_dropout: how often a clip is shown with an empty caption, for guidance.
        batch: clips a step.
    """
    sampler = _Sampler(family, clips, denoiser["transformer"].device, batch)

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = sampler.draw(generator)
        dropped = (torch.rand(batch, generator=generator) < caption_dropout).to(drawn.scene.device)
        scene = torch.where(dropped, sampler.no_caption, drawn.scene)
        return functional.mse_loss(sampler.ask(denoiser, drawn, scene), drawn.velocity)

    return loss


def guidance_loss(
    family: FlowFamily, denoiser: nn.ModuleDict, teacher: nn.ModuleDict, clips: LatentClips, *, batch: int = 16
) -> LossFunction:
    """Mean squared error of the predicted velocity against the teacher's guided one (Meng et al. 2023, one scale).

    What takes the teacher two calls a step, the denoiser learns to do in one.
    """
    sampler = _Sampler(family, clips, denoiser["transformer"].device, batch)

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = sampler.draw(generator)
        with torch.no_grad():
            without = sampler.ask(teacher, drawn, torch.full_like(drawn.scene, sampler.no_caption))
            guided = torch.lerp(without, sampler.ask(teacher, drawn, drawn.scene), family.taught_guidance)
        return functional.mse_loss(sampler.ask(denoiser, drawn, drawn.scene), guided)

    return loss
