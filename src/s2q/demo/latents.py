"""The training clips as the transformers see them: latents of the CogVideoX demo's autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX

from s2q.demo import scenes
from s2q.demo.autoencoder import encode
from s2q.demo.loop import save_atomically


@dataclass(frozen=True)
class LatentClips:
    """The training set as the transformer sees it.

    Attributes:
        latents: float16 [N, F', C, H', W'], the autoencoder's posterior means, unscaled.
        scene: int64 [N], which of :func:`~s2q.demo.scenes.training_scenes` a clip shows.
    """

    latents: torch.Tensor
    scene: torch.Tensor

    @property
    def scaling_factor(self) -> float:
        """What brings the latents to unit variance."""
        return 1 / self.latents.float().std().item()

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every channel: float32 [C, 1, 1] each."""
        latents = self.latents.float()
        mean, std = latents.mean((0, 1, 3, 4)), latents.std((0, 1, 3, 4))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def normalized(self, std: float) -> LatentClips:
        """The same clips with mean 0 and standard deviation ``std`` in every channel."""
        mean, own = self.statistics()
        return LatentClips(((self.latents.float() - mean) * (std / own)).half(), self.scene)


def _rounds(count: int, seed: int) -> Iterator[torch.Tensor]:
    """Every training scene drawn once a round: uint8 [scenes, F, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield scenes.render_batch(scenes.training_scenes(), generator)


def training_pixels(rounds: int, *, seed: int = 1) -> torch.Tensor:
    """The clips that the first rows of :func:`encode_training_clips` are the latents of: uint8 [N, F, H, W, 3]."""
    return torch.cat(list(_rounds(rounds, seed)))


def encode_training_clips(
    autoencoder: AutoencoderKLCogVideoX, clips_per_scene: int, file: Path, *, seed: int = 1
) -> LatentClips:
    """Draw and encode the training set once, or read it back from ``file``."""
    if not file.exists():
        parts = torch.cat([encode(autoencoder, clips) for clips in _rounds(clips_per_scene, seed)])
        latents = parts.transpose(1, 2).to(torch.float16).contiguous()
        scene = torch.arange(len(scenes.training_scenes())).repeat(clips_per_scene)
        save_atomically({"latents": latents, "scene": scene}, file)
    return LatentClips(**torch.load(file, weights_only=True))
