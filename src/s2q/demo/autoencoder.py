"""The demo's video autoencoder: diffusers' own ``AutoencoderKLCogVideoX``, as small as the synthetic world allows."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX
from torch.nn import functional

from s2q.demo import scenes
from s2q.demo.loop import LossFunction

LATENT_CHANNELS = 16
_BATCH = 8
_KL_WEIGHT = 1e-4
_OBJECT_WEIGHT = 3.0
_MOST_LATENT_NOISE = 0.4  # in unscaled latents, whose standard deviation comes out near 0.9
# The posterior starts nearly deterministic; at the usual log variance of 0 its noise drowns the picture for long.
INITIAL_LOG_VARIANCE = -6.0


def build_autoencoder(block_out_channels: tuple[int, ...] = (16, 32, 64)) -> AutoencoderKLCogVideoX:
    """An untrained autoencoder: 4x smaller in space and in time, the first frame apart (9 frames give 3)."""
    levels = len(block_out_channels)
    autoencoder = AutoencoderKLCogVideoX(
        block_out_channels=block_out_channels,
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=scenes.SIZE,
        sample_width=scenes.SIZE,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        autoencoder.encoder.conv_out.conv.bias[LATENT_CHANNELS:] = INITIAL_LOG_VARIANCE
    return autoencoder


def to_model(clips: torch.Tensor) -> torch.Tensor:
    """Clips as pixels, uint8 [N, F, H, W, 3], to what the autoencoder takes: float32 [N, 3, F, H, W] in -1..1."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_pixels(video: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_model`, rounded and clamped."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def _draw(batch: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Freshly rendered training clips: float32 [batch, 3, F, H, W] in -1..1."""
    pool = scenes.training_scenes()
    drawn = torch.randint(len(pool), (batch,), generator=generator).tolist()
    return to_model(scenes.render_batch([pool[index] for index in drawn], generator)).to(device)


def reconstruction_error(decoded: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Absolute plus squared error, weighted up where the object is."""
    # The plain background is most of the picture and is learnt at once; the object is what blurs.
    background = video.flatten(2).median(dim=2).values.view(len(video), 3, 1, 1, 1)
    is_object = ((video - background).abs().amax(1, keepdim=True) > 0.1).float()
    weight = 1 + _OBJECT_WEIGHT * is_object
    error = decoded.float() - video
    return (weight * (error.abs() + error.square())).sum() / weight.expand_as(error).sum()


def autoencoder_loss(autoencoder: AutoencoderKLCogVideoX, *, batch: int = _BATCH) -> LossFunction:
    """Reconstruction plus a little KL, over freshly drawn training clips."""

    def loss(generator: torch.Generator) -> torch.Tensor:
        video = _draw(batch, generator, autoencoder.device)
        with torch.autocast(video.device.type, torch.bfloat16):
            posterior = autoencoder.encode(video).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(video.device)
            decoded = autoencoder.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction_error(decoded, video) + _KL_WEIGHT * kl

    return loss


def decoder_loss(autoencoder: AutoencoderKLCogVideoX, *, batch: int = _BATCH) -> LossFunction:
    """Reconstruction of clean clips from latents with more and less noise on them; the encoder stays as it is.

    The latents a small diffusion model makes are a little off. A decoder trained on exact ones turns that into ragged
    outlines; one trained on noisy ones has learnt what outlines there are.
    """

    def loss(generator: torch.Generator) -> torch.Tensor:
        video = _draw(batch, generator, autoencoder.device)
        amount = _MOST_LATENT_NOISE * torch.rand(batch, 1, 1, 1, 1, generator=generator).to(video.device)
        with torch.autocast(video.device.type, torch.bfloat16):
            with torch.no_grad():
                latents = autoencoder.encode(video).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=generator).to(video.device)
            decoded = autoencoder.decode(latents + amount * noise).sample
        return reconstruction_error(decoded, video)

    return loss


@torch.no_grad()
def encode(autoencoder: AutoencoderKLCogVideoX, clips: torch.Tensor, *, batch: int = 64) -> torch.Tensor:
    """Unscaled posterior means of uint8 clips [N, F, H, W, 3]: float32 [N, C, F', H', W'] on the CPU."""
    parts = []
    for part in clips.split(batch):
        with torch.autocast(autoencoder.device.type, torch.bfloat16):
            parts.append(autoencoder.encode(to_model(part).to(autoencoder.device)).latent_dist.mean.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def decode(autoencoder: AutoencoderKLCogVideoX, latents: torch.Tensor, *, batch: int = 64) -> torch.Tensor:
    """Decode unscaled latents [N, C, F', H', W'] in full precision to uint8 clips [N, F, H, W, 3] on the CPU."""
    dtype, device = autoencoder.dtype, autoencoder.device
    return torch.cat(
        [to_pixels(autoencoder.decode(part.to(device, dtype)).sample).cpu() for part in latents.split(batch)]
    )


def peak_signal_to_noise(clips: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB between uint8 clips of one shape."""
    return float(10 * torch.log10(255**2 / functional.mse_loss(clips.float(), reference.float())))
