"""How far a quantized clip is from its full-precision twin.

Notation: F frames, H and W pixels. A clip is uint8 [F, H, W, 3] (RGB, 0..255), as a numpy array or a torch tensor;
both clips of a comparison must come from the same noise, or the numbers mean nothing. All results are Python floats,
computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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

# Exponents of the scales, the finest first, found by experiment with observers: Wang, Simoncelli & Bovik 2003.
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

THIRDS = ("latent_error_early", "latent_error_middle", "latent_error_late")
MEASURES = (
    "psnr_db", "ssim", "ms_ssim", "latent_relative_mse", *THIRDS, "temporal_difference_rmse", "motion_ratio",
    "flicker_ratio",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pair:
    """One prompt and seed generated twice.

    Attributes:
        reference, candidate: uint8 [F, H, W, 3], full precision and quantized.
        reference_latents, candidate_latents: float, any shape but the same: the last latents before decoding.
        step_errors: ``|a - b|^2 / |a|^2`` of the latents after each denoising step, [T]; empty if not recorded.
    """

    reference: Array
    candidate: Array
    reference_latents: Array
    candidate_latents: Array
    step_errors: Sequence[float] = ()


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
    return ratio_db(PEAK**2, error)


def ratio_db(signal: float, error: float) -> float:
    """10 log₁₀ of a ratio of powers, at most :data:`PSNR_CAP_DB`."""
    return PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, 10 * math.log10(signal / error))


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
    _check_window(a)
    # A frame at a time bounds the memory.
    return sum(_similarity(x, y)[0] for x, y in zip(a.numpy(), b.numpy(), strict=True)) / a.shape[0]


def _check_window(clip: torch.Tensor) -> None:
    height, width = clip.shape[1:3]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, got {height}x{width}")


def _similarity(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Means over pixels and channels of SSIM, and of its contrast-and-structure part alone; both [H, W, 3]."""
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x * mean_x
    variance_y = _smooth(y * y) - mean_y * mean_y
    covariance = _smooth(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float((luminance * structure).mean()), float(structure.mean())


def ms_ssim_scales(height: int, width: int) -> int:
    """How many scales :func:`ms_ssim` uses: at most five, and so few that SSIM's window fits into the coarsest.

    Five from 176 pixels, four from 88, three from 44, two from 22, one (which is SSIM) from 11.
    """
    scales = 1
    while scales < len(_MS_SSIM_WEIGHTS) and min(height, width) // 2**scales >= WINDOW:
        scales += 1
    return scales


def ms_ssim(reference: Array, candidate: Array) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik 2003), in [0, 1]: mean over frames.

    Of a frame it is the product over scales of contrast-and-structure, with luminance at the coarsest, each the mean
    over pixels and channels, raised to the paper's exponent; a negative one counts as 0. Each scale halves the one
    before by averaging 2x2 pixels. Small frames have fewer scales (see :func:`ms_ssim_scales`), and the exponents of
    those left are divided by their sum: values over different numbers of scales are not comparable.

    Args:
        reference, candidate: uint8 [F, H, W, 3], at least 11 pixels high and wide.
    """
    a, b = _clips(reference, candidate)
    _check_window(a)
    scales = ms_ssim_scales(*a.shape[1:3])
    weights = np.array(_MS_SSIM_WEIGHTS[:scales]) / sum(_MS_SSIM_WEIGHTS[:scales])
    total = 0.0
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        parts = []
        for scale in range(scales):
            whole, structure = _similarity(x, y)
            parts.append(whole if scale == scales - 1 else structure)
            x, y = _halve(x), _halve(y)
        total += float(np.prod(np.maximum(parts, 0) ** weights))
    return total / a.shape[0]


def _halve(image: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels: [H, W, 3] -> [H//2, W//2, 3]; an odd last row or column is dropped."""
    height, width = (length // 2 * 2 for length in image.shape[:2])
    return image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))


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


def flicker_ratio(reference: Array, candidate: Array) -> float:
    """Mean absolute second difference in time, ``|x[f-1] - 2 x[f] + x[f+1]|``, of the candidate over the reference.

    The second difference passes the temporal frequency w with gain 4 sin^2(w/2): nothing of a steady change, most of
    what goes up and down from frame to frame. VBench's temporal flickering (arXiv 2311.17982) takes the first
    difference, which a lively clip raises as much as a flickering one; hence this measure of our own. 1 is as steady
    as full precision, above 1 flickers more. Both are floored at :data:`STILL` grey levels.

    Args:
        reference, candidate: uint8 [F, H, W, 3], F >= 3.
    """
    a, b = (clip.diff(n=2, dim=0).abs().mean().item() for clip in _clips(reference, candidate, least_frames=3))
    return max(b, STILL) / max(a, STILL)


def error_by_third(step_errors: Sequence[float]) -> dict[str, float | None]:
    """Mean of the errors [T] over the early, middle and late third of the steps, by the names in :data:`THIRDS`.

    A step belongs to the third in which its middle lies, so that two steps are an early and a late one; a third
    without a step is None.
    """
    parts: list[list[float]] = [[], [], []]
    for step, error in enumerate(step_errors):
        parts[(6 * step + 3) // (2 * len(step_errors))].append(error)
    return {name: float(np.mean(part)) if part else None for name, part in zip(THIRDS, parts, strict=True)}


def measure(pair: Pair) -> dict[str, float | int | None]:
    """Every measure of one pair, by the names in :data:`MEASURES`, and ``ms_ssim_scales``.

    None where the clip has too few frames for a measure, or too few steps for a third.
    """
    frames = len(pair.reference)
    clips = pair.reference, pair.candidate
    return {
        "psnr_db": psnr_db(*clips),
        "ssim": ssim(*clips),
        "ms_ssim": ms_ssim(*clips),
        "ms_ssim_scales": ms_ssim_scales(*pair.reference.shape[1:3]),
        "latent_relative_mse": latent_relative_mse(pair.reference_latents, pair.candidate_latents),
        **error_by_third(pair.step_errors),
        "temporal_difference_rmse": temporal_difference_error(*clips) if frames >= 2 else None,
        "motion_ratio": motion_ratio(*clips) if frames >= 2 else None,
        "flicker_ratio": flicker_ratio(*clips) if frames >= 3 else None,
    }


def fidelity(measured: Sequence[Mapping[str, float | int | None]]) -> dict[str, float | int | None]:
    """Means over clips of every measure, None where no clip has it.

    Beside them ``psnr_db_std`` (population, over clips), ``ms_ssim_scales`` and ``clips``, their number.

    Args:
        measured: what :func:`measure` said of each pair.
    """
    if not measured:
        raise ValueError("no clips to compare: fidelity needs at least one pair")
    means: dict[str, float | int | None] = {name: mean_of(one[name] for one in measured) for name in MEASURES}
    means["psnr_db_std"] = float(np.std([one["psnr_db"] for one in measured]))
    means["ms_ssim_scales"] = min(one["ms_ssim_scales"] for one in measured)
    means["clips"] = len(measured)
    return means


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there, None if none is."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
