"""Autoencoders of other families, taught the latents of the CogVideoX demo's: minutes instead of half an hour.

Text to video needs the decoder alone. It learns pixels from those latents; the encoder learns the latents from pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from s2q.demo.autoencoder import INITIAL_LOG_VARIANCE, reconstruction_error, to_model
from s2q.demo.flow import FlowFamily
from s2q.demo.latents import LatentClips, training_pixels
from s2q.demo.loop import LossFunction

_BATCH = 4
_MOST_NOISE = 0.5  # in standard deviations of a channel


@dataclass(frozen=True)
class Pairs:
    """Clips and their latents.

    Attributes:
        pixels: uint8 [N, F, H, W, 3].
        latents: float32 [N, C, F', H', W'], raw: as the autoencoder to be taught takes and gives them.
        spread: standard deviation of the latents by channel, [C, 1, 1, 1].
    """

    pixels: torch.Tensor
    latents: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, clips: LatentClips, rounds: int) -> Pairs:
        """The clips of the training set's first rounds over all scenes, drawn once more, with their latents."""
        pixels = training_pixels(rounds)
        spread = clips.statistics()[1].unsqueeze(1)
        return cls(pixels, clips.latents[: len(pixels)].float().transpose(1, 2).contiguous(), spread)


def quieten(autoencoder: nn.Module) -> nn.Module:
    """Make the posterior of an untrained autoencoder narrow and the same everywhere; nothing trains its width."""
    convolution = autoencoder.quant_conv
    channels = convolution.out_channels // 2
    with torch.no_grad():
        convolution.weight[channels:] = 0
        convolution.bias[channels:] = INITIAL_LOG_VARIANCE
    return autoencoder


def decoder_part(autoencoder: nn.Module) -> nn.ModuleList:
    """What turns latents to pixels."""
    return nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder])


def encoder_part(autoencoder: nn.Module) -> nn.ModuleList:
    """What turns pixels to latents."""
    return nn.ModuleList([autoencoder.encoder, autoencoder.quant_conv])


def taught_decoder_loss(
    family: FlowFamily, autoencoder: nn.Module, pairs: Pairs, *, batch: int = _BATCH
) -> LossFunction:
    """Reconstruction of clean clips from latents with more and less noise on them, as a small model makes them."""
    device = autoencoder.device

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(len(pairs.pixels), (batch,), generator=generator)
        latents = pairs.latents[drawn]
        amount = _MOST_NOISE * pairs.spread * torch.rand(batch, 1, 1, 1, 1, generator=generator)
        noisy = latents + amount * torch.randn(latents.shape, generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            decoded = family.decode(autoencoder, noisy.to(device))
        return reconstruction_error(decoded, to_model(pairs.pixels[drawn]).to(device))

    return loss


def taught_encoder_loss(autoencoder: nn.Module, pairs: Pairs, *, batch: int = _BATCH) -> LossFunction:
    """Squared error of the posterior's mean against the latents."""
    device = autoencoder.device

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(len(pairs.pixels), (batch,), generator=generator)
        with torch.autocast(device.type, torch.bfloat16):
            mean = autoencoder.encode(to_model(pairs.pixels[drawn]).to(device)).latent_dist.mean
        return functional.mse_loss(mean.float(), pairs.latents[drawn].to(device))

    return loss
