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
    assemble: Callable[[Any, nn.ModuleDict], DiffusionPipeline]


def flow_loss(
    family: FlowFamily,
    denoiser: nn.ModuleDict,
    clips: LatentClips,
    *,
    caption_dropout: float = 0.1,
    batch: int = 32,
) -> LossFunction:
    """Mean squared error of the predicted velocity, noise minus clip, at shifted uniform noise levels.

    Args:
        family: of the denoiser.
        denoiser: to be trained.
        clips: the training set.
        caption_dropout: how often a clip is shown with an empty caption, for guidance.
        batch: clips a step.
    """
    transformer = denoiser["transformer"]
    device = transformer.device
    captions = [scene.caption for scene in scenes.training_scenes()]
    tokens = {name: value.to(device) for name, value in family.tokenize([*captions, ""]).items()}
    mean, std = family.normalization(clips)

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(len(clips.scene), (batch,), generator=generator)
        latents = ((clips.latents[drawn].float() - mean) / std).transpose(1, 2).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        uniform = torch.rand(batch, generator=generator)
        sigma = (SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).to(device)
        dropped = torch.rand(batch, generator=generator) < caption_dropout
        scene = torch.where(dropped, len(captions), clips.scene[drawn]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = transformer(
                hidden_states=torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1)),
                timestep=sigma * 1000,
                **family.encode(denoiser, {name: value[scene] for name, value in tokens.items()}),
                return_dict=False,
            )[0]
        return functional.mse_loss(predicted.float(), noise - latents)

    return loss
