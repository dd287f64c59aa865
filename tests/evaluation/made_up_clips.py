"""A clip for tests: simple, moving, and known pixel by pixel."""

from __future__ import annotations

import numpy as np

FRAMES, SIZE, FPS = 9, 32, 8.0


def moving_square(start: int = 3, step: int = 2, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A square travelling right by ``step`` pixels a frame: uint8 [FRAMES, SIZE, SIZE, 3]."""
    clip = np.full((FRAMES, SIZE, SIZE, 3), (125, 120, 118), dtype=np.float64)
    for index in range(FRAMES):
        left = start + index * step
        clip[index, 10:22, left : left + 10] = (40, 75, 235)
    clip += np.random.default_rng(seed).normal(0, noise, clip.shape) if noise else 0
    return clip.round().clip(0, 255).astype(np.uint8)
