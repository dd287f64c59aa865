"""The measures against simple known answers, and the properties a measure must have whatever the clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_clips import moving_square

from s2q.evaluation.metrics import (
    PSNR_CAP_DB,
    Pair,
    fidelity,
    latent_relative_mse,
    motion_ratio,
    psnr_db,
    ssim,
    temporal_difference_error,
)

FIDELITY_KEYS = {
    "psnr_db", "ssim", "latent_relative_mse", "temporal_difference_rmse", "motion_ratio", "clips", "psnr_db_std",
}  # fmt: skip
few = settings(max_examples=25, deadline=None)


def flat(value: int, frames: int = 2, size: int = 16) -> np.ndarray:
    return np.full((frames, size, size, 3), value, dtype=np.uint8)


def _noise(seed: int, low: int, high: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, (3, 16, 16, 3), dtype=np.uint8)


# Noise between any two values: from flat through faint to full range.
clips = st.builds(
    lambda seed, ends: _noise(seed, min(ends), max(ends)),
    st.integers(0, 10_000),
    st.tuples(st.integers(0, 255), st.integers(0, 255)),
)


def test_psnr_of_a_known_error() -> None:
    assert psnr_db(flat(100), flat(110)) == pytest.approx(10 * math.log10(255**2 / 100))
    assert psnr_db(flat(0), flat(255)) == pytest.approx(0.0)


def test_psnr_is_of_the_whole_clip_not_a_mean_over_frames() -> None:
    spoiled = flat(100)
    spoiled[1] = 120
    assert psnr_db(flat(100), spoiled) == pytest.approx(10 * math.log10(255**2 / 200))


def test_psnr_never_exceeds_its_cap() -> None:
    reference = flat(100, frames=4, size=512)
    almost = reference.copy()
    almost[0, 0, 0, 0] += 1  # 113 dB without the cap
    assert psnr_db(reference, reference) == psnr_db(reference, almost) == PSNR_CAP_DB


def test_ssim_of_flat_clips_is_the_luminance_term() -> None:
    c1 = (0.01 * 255) ** 2
    assert ssim(flat(100), flat(150)) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_ssim_against_the_formula_written_out_pixel_by_pixel() -> None:
    generator = np.random.default_rng(3)
    a = generator.integers(0, 256, (2, 16, 18, 3), dtype=np.uint8)
    b = (a * 0.8 + generator.normal(0, 20, a.shape)).clip(0, 255).astype(np.uint8)
    offsets = np.arange(-5, 6)
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for frame, row, column, channel in np.ndindex(2, 6, 8, 3):
        x, y = (clip[frame, row : row + 11, column : column + 11, channel].astype(float) for clip in (a, b))
        mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
        variance_x, variance_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
        covariance = (weight * (x - mean_x) * (y - mean_y)).sum()
        values.append(
            (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
        )  # fmt: skip
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 10x10"):
        ssim(flat(1, size=10), flat(1, size=10))


def test_latent_error_is_relative_to_the_signal() -> None:
    latents = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert latent_relative_mse(latents, latents * 1.1) == pytest.approx(0.01, rel=1e-5)
    assert latent_relative_mse(latents, torch.zeros_like(latents)) == pytest.approx(1.0)
    assert latent_relative_mse(latents.bfloat16(), latents.bfloat16()) == 0
    with pytest.raises(ValueError, match="all zero"):
        latent_relative_mse(torch.zeros(3), torch.ones(3))


def test_temporal_error_ignores_a_constant_shift_and_sees_flicker() -> None:
    clip = moving_square()
    assert temporal_difference_error(clip, clip + 10) == 0
    flicker = clip.copy()
    flicker[1::2] += 10
    assert temporal_difference_error(clip, flicker) == pytest.approx(10)


@pytest.mark.parametrize(("step", "low", "high"), [(0, 0.0, 0.01), (1, 0.4, 0.6), (2, 1.0, 1.0), (3, 1.0, 1.6)])
def test_motion_ratio_follows_the_speed(step: int, low: float, high: float) -> None:
    assert low <= motion_ratio(moving_square(0, 2), moving_square(0, step)) <= high


def test_motion_ratio_of_still_clips_is_finite() -> None:
    assert motion_ratio(flat(7), flat(9)) == 1
    assert math.isfinite(motion_ratio(flat(7, frames=9, size=32), moving_square()))


@few
@given(clip=clips)
def test_a_clip_is_identical_to_itself(clip: np.ndarray) -> None:
    assert psnr_db(clip, clip) == PSNR_CAP_DB
    assert ssim(clip, clip) == pytest.approx(1)
    assert temporal_difference_error(clip, clip) == 0
    assert motion_ratio(clip, clip) == 1


@few
@given(a=clips, b=clips)
def test_symmetry_and_bounds(a: np.ndarray, b: np.ndarray) -> None:
    assert psnr_db(a, b) == pytest.approx(psnr_db(b, a))
    assert ssim(a, b) == pytest.approx(ssim(b, a))
    assert temporal_difference_error(a, b) == pytest.approx(temporal_difference_error(b, a))
    assert motion_ratio(a, b) * motion_ratio(b, a) == pytest.approx(1)
    assert 0 <= psnr_db(a, b) <= PSNR_CAP_DB
    assert -1 <= ssim(a, b) <= 1 + 1e-12


@few
@given(seed=st.integers(0, 10_000), weak=st.floats(1, 10), factor=st.floats(1.5, 4))
def test_more_noise_is_never_closer(seed: int, weak: float, factor: float) -> None:
    clip = moving_square()
    little, much = (moving_square(noise=sigma, seed=seed) for sigma in (weak, weak * factor))
    assert psnr_db(clip, little) > psnr_db(clip, much)
    assert ssim(clip, little) > ssim(clip, much)
    assert temporal_difference_error(clip, little) < temporal_difference_error(clip, much)


@few
@given(start=st.integers(0, 5), stride=st.integers(2, 4))
def test_a_slowed_clip_moves_less(start: int, stride: int) -> None:
    clip = moving_square(start)
    slowed = clip[np.arange(len(clip)) // stride]
    assert motion_ratio(clip, slowed) < 1


def test_tensors_and_arrays_agree() -> None:
    a, b = moving_square(), moving_square(noise=5)
    for measure in (psnr_db, ssim, temporal_difference_error, motion_ratio):
        assert measure(a, b) == measure(torch.from_numpy(a), torch.from_numpy(b))


def test_fidelity_is_the_mean_over_clips() -> None:
    latents = np.ones((4, 2, 2))
    pairs = [Pair(flat(100), flat(100 + error), latents, latents * (1 + error / 100)) for error in (10, 20)]
    result = fidelity(pairs)
    both = [psnr_db(pair.reference, pair.candidate) for pair in pairs]
    assert set(result) == FIDELITY_KEYS
    assert result["clips"] == 2
    assert isinstance(result["clips"], int)
    assert result["psnr_db"] == pytest.approx(sum(both) / 2)
    assert result["psnr_db_std"] == pytest.approx((both[0] - both[1]) / 2)
    assert result["latent_relative_mse"] == pytest.approx((0.01 + 0.04) / 2)
    assert all(type(value) in (int, float) for value in result.values()), "must be writable as JSON"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        psnr_db(flat(1), flat(1, frames=3))
    with pytest.raises(ValueError, match=r"candidate must be uint8 \[F, H, W, 3\], got torch.float32"):
        psnr_db(flat(1), flat(1).astype(np.float32))
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        motion_ratio(flat(1, frames=1), flat(1, frames=1))
    with pytest.raises(ValueError, match="no clips"):
        fidelity([])
