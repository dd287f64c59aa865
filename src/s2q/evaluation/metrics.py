"""How far a quantized clip is from its full-precision twin.

Notation: F frames, H and W pixels. A clip is uint8 [F, H, W, 3] (RGB, 0..255), as a numpy array or a torch tensor;
both clips of a comparison must come from the same noise, or the numbers mean nothing. All results are Python floats,
computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray | torch.Tensor

PEAK = 255.0
# Identical clips have an infinite PSNR, which can neither be averaged nor written as JSON. 100 dB is a mean squared
# error of 6.5e-6, under one grey level in 150,000 values.
PSNR_CAP_DB = 100.0
# A clip whose values change by less than this from frame to frame, in grey levels, is called still.
STILL = 0.01

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2

MEASURES = ("psnr_db", "ssim", "latent_relative_mse", "temporal_difference_rmse", "motion_ratio")


@dataclass(frozen=True, eq=False)
class Pair:
    """One prompt and seed generated twice.

    Attributes:
        reference, candidate: uint8 [F, H, W, 3], full precision and quantized.
        reference_latents, candidate_latents: float, any shape but the same: the last latents before decoding.
    """

    reference: Array
    candidate: Array
    reference_latents: Array
    candidate_latents: Array


def _clips(reference: Array, candidate: Array, least_frames: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Both clips as float64 [F, H, W, 3], after checking that they can be compared."""
    clips = tuple(torch.as_tensor(clip) for clip in (reference, candidate))
    for role, clip in zip(("reference", "candidate"), clips, strict=True):
        if clip.dtype != torch.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            raise ValueError(f"{role} must be uint8 [F, H, W, 3], got {clip.dtype} {list(clip.shape)}")
    if clips[0].shape != clips[1].shape:
        raise ValueError(f"the clips differ in shape: {list(clips[0].shape)} and {list(clips[1].shape)}")
    if clips[0].shape[0] < least_frames:
        raise ValueError(f"this measure needs at least {least_frames} frames, got {clips[0].shape[0]}")
    return clips[0].double().cpu(), clips[1].double().cpu()


def psnr_db(reference: Array, candidate: Array) -> float:
    """Peak signal-to-noise ratio in dB of the whole clip (one mean squared error), at most :data:`PSNR_CAP_DB`.

    Args:
        reference, candidate: uint8 [F, H, W, 3].
    """
    a, b = _clips(reference, candidate)
    error = (a - b).square().mean().item()
    return PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, 10 * math.log10(PEAK**2 / error))


def _smooth(image: np.ndarray) -> np.ndarray:
    """Gaussian-weighted local means: [H, W, 3] -> [H-10, W-10, 3], only where the window lies inside the image."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weight = np.exp(-(offset**2) / (2 * _SIGMA**2))
    weight /= weight.sum()
    # The window is separable. Not torch's convolution: in float64 on a CPU it takes many times as long.
    rows = sliding_window_view(image, WINDOW, axis=0) @ weight
    return sliding_window_view(rows, WINDOW, axis=1) @ weight


def ssim(reference: Array, candidate: Array) -> float:
    """Structural similarity (Wang et al. 2004), at most 1: mean over pixels, channels and frames.

    Gaussian window 11x11 with sigma 1.5, population covariance, K1 = 0.01, K2 = 0.03; border pixels where the window
    would leave the image are left out, so a frame must be at least 11 pixels high and wide.

    Args:
        reference, candidate: uint8 [F, H, W, 3].
    """
    a, b = _clips(reference, candidate)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, got {a.shape[1]}x{a.shape[2]}")
    total = 0.0
    for x, y in zip(a.numpy(), b.numpy(), strict=True):  # a frame at a time bounds the memory
        mean_x, mean_y = _smooth(x), _smooth(y)
        variance_x = _smooth(x * x) - mean_x * mean_x
        variance_y = _smooth(y * y) - mean_y * mean_y
        covariance = _smooth(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
        structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
        total += float((luminance * structure).mean())
    return total / a.shape[0]


def latent_relative_mse(reference: Array, candidate: Array) -> float:
    """``|a - b|^2 / |a|^2`` over all elements: 0 for equal latents, 1 when the error is as large as the signal.

    Args:
        reference, candidate: float, any shape, the same for both; the reference must not be all zero.
    """
    a, b = (torch.as_tensor(latents).detach().double().cpu() for latents in (reference, candidate))
    if a.shape != b.shape:
        raise ValueError(f"the latents differ in shape: {list(a.shape)} and {list(b.shape)}")
    power = a.square().sum().item()
    if power == 0:
        raise ValueError("the reference latents are all zero: an error relative to them is undefined")
    return (a - b).square().sum().item() / power


def temporal_difference_error(reference: Array, candidate: Array) -> float:
    """RMSE between the frame-to-frame differences of two clips, in grey levels.

    Blind to a constant change of colour, sensitive to flicker and to motion which goes another way.

    Args:
        reference, candidate: uint8 [F, H, W, 3], F >= 2.
    """
    a, b = _clips(reference, candidate, least_frames=2)
    return (a.diff(dim=0) - b.diff(dim=0)).square().mean().sqrt().item()


def motion_ratio(reference: Array, candidate: Array) -> float:
    """Mean absolute frame-to-frame change of the candidate over that of the reference.

    1 is as lively as full precision, below 1 slower or smoother, above 1 more motion or flicker. Both changes are
    floored at :data:`STILL` grey levels: two still clips give 1, and the ratio is always finite.

    Args:
        reference, candidate: uint8 [F, H, W, 3], F >= 2.
    """
    a, b = (clip.diff(dim=0).abs().mean().item() for clip in _clips(reference, candidate, least_frames=2))
    return max(b, STILL) / max(a, STILL)


def measure(pair: Pair) -> dict[str, float]:
    """Every measure of one pair, by the names in :data:`MEASURES`."""
    return {
        "psnr_db": psnr_db(pair.reference, pair.candidate),
        "ssim": ssim(pair.reference, pair.candidate),
        "latent_relative_mse": latent_relative_mse(pair.reference_latents, pair.candidate_latents),
        "temporal_difference_rmse": temporal_difference_error(pair.reference, pair.candidate),
        "motion_ratio": motion_ratio(pair.reference, pair.candidate),
    }


def fidelity(pairs: Iterable[Pair]) -> dict[str, float | int]:
    """Means over clips of every measure, with ``psnr_db_std`` (population, over clips) and ``clips``, their number."""
    measured = [measure(pair) for pair in pairs]
    if not measured:
        raise ValueError("no clips to compare: fidelity needs at least one pair")
    means: dict[str, float | int] = {name: float(np.mean([one[name] for one in measured])) for name in MEASURES}
    means["psnr_db_std"] = float(np.std([one["psnr_db"] for one in measured]))
    means["clips"] = len(measured)
    return means
