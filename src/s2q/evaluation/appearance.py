"""What a clip looks like by itself, without looking at any other.

A clip is uint8 [F, H, W, 3] (RGB, 0..255). Grey is ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114 B. Every measure is
computed in float64, frame by frame, in grey levels, and averaged over frames. None says that a clip is good: they
tell, for the full-precision clip and the quantized one, in what the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

APPEARANCE = ("sharpness", "contrast", "colourfulness", "noise")
_LUMA = np.array([0.299, 0.587, 0.114])


def _frames(clip: np.ndarray) -> np.ndarray:
    """``clip`` as float64 [F, H, W, 3], after checking it."""
    clip = np.asarray(clip)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not len(clip):
        raise ValueError(f"a clip must be uint8 [F, H, W, 3] with at least one frame, got {clip.dtype} {clip.shape}")
    if min(clip.shape[1:3]) < 3:
        raise ValueError(f"these measures need frames of at least 3x3 pixels, got {clip.shape[1]}x{clip.shape[2]}")
    return clip.astype(np.float64)


def _second_differences(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``x[i-1] - 2 x[i] + x[i+1]`` down the columns and along the rows: [F, H, W] -> [F, H-2, W] and [F, H, W-2]."""
    return np.diff(image, n=2, axis=1), np.diff(image, n=2, axis=2)


def sharpness(clip: np.ndarray) -> float:
    """Variance over the pixels of a frame of its Laplacian (Pech-Pacheco et al. 2000, "LAPV"): blur lowers it.

    The four-neighbour Laplacian of the grey frame, where all neighbours lie inside.
    """
    vertical, horizontal = _second_differences(_frames(clip) @ _LUMA)
    laplacian = vertical[:, :, 1:-1] + horizontal[:, 1:-1]
    return float(laplacian.var(axis=(1, 2)).mean())


def contrast(clip: np.ndarray) -> float:
    """Root-mean-square contrast (Peli 1990): the standard deviation of the grey levels of a frame."""
    return float((_frames(clip) @ _LUMA).std(axis=(1, 2)).mean())


def colourfulness(clip: np.ndarray) -> float:
    """Colourfulness M(3) of Hasler & Süsstrunk 2003: 0 is grey, about 100 extremely colourful.

    With rg = R - G and yb = (R + G)/2 - B: sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).
    """
    red, green, blue = np.moveaxis(_frames(clip), -1, 0)
    opponents = (red - green, (red + green) / 2 - blue)
    spread = sum(one.var(axis=(1, 2)) for one in opponents)
    centre = sum(one.mean(axis=(1, 2)) ** 2 for one in opponents)
    return float((np.sqrt(spread) + 0.3 * np.sqrt(centre)).mean())


def noise(clip: np.ndarray) -> float:
    """Standard deviation of Gaussian noise as Immerkær 1996 estimates it, in grey levels.

    sqrt(pi/2)/6 times the mean absolute response to [1 -2 1; -2 4 -2; 1 -2 1], which is blind to whatever is linear
    along a row or a column. Fine texture counts as noise.
    """
    vertical, _ = _second_differences(_frames(clip) @ _LUMA)
    return float(math.sqrt(math.pi / 2) / 6 * np.abs(np.diff(vertical, n=2, axis=2)).mean())


def appearance(clip: np.ndarray) -> dict[str, float]:
    """Every measure of one clip, by the names in :data:`APPEARANCE`."""
    return {
        "sharpness": sharpness(clip),
        "contrast": contrast(clip),
        "colourfulness": colourfulness(clip),
        "noise": noise(clip),
    }


def paired(reference: Sequence[dict[str, float]], candidate: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over clips of scores that each clip has by itself, and of their difference from twin to twin.

    Args:
        reference, candidate: the scores by name, one dictionary a clip, in the same order and with the same names.

    Returns:
        name -> ``float`` and ``quantized`` (the means), ``difference`` (mean of quantized minus float) and
        ``difference_std`` (of that difference, population, over clips).
    """
    if not reference or len(reference) != len(candidate):
        raise ValueError(f"scores must come in pairs, got {len(reference)} and {len(candidate)}")
    rows = {}
    for name in reference[0]:
        before, after = (np.array([one[name] for one in scores]) for scores in (reference, candidate))
        rows[name] = {
            "float": float(before.mean()),
            "quantized": float(after.mean()),
            "difference": float((after - before).mean()),
            "difference_std": float((after - before).std()),
        }
    return rows
