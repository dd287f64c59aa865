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
    MEASURES,
    PSNR_CAP_DB,
    Pair,
    error_by_third,
    fidelity,
    flicker_ratio,
    latent_relative_mse,
    measure,
    motion_ratio,
    ms_ssim,
    ms_ssim_scales,
    psnr_db,
    ssim,
    temporal_difference_error,
)

FIDELITY_KEYS = {*MEASURES, "clips", "psnr_db_std", "ms_ssim_scales"}
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


def test_ms_ssim_of_one_scale_is_ssim_and_small_frames_have_few_scales() -> None:
    a, b = flat(100, size=21), _noise(0, 80, 120).repeat(2, axis=1).repeat(2, axis=2)[:2, :21, :21]
    assert ms_ssim(a, b) == pytest.approx(ssim(a, b))
    assert [ms_ssim_scales(size, 999) for size in (11, 21, 22, 44, 88, 175, 176, 9999)] == [1, 1, 2, 3, 4, 4, 5, 5]
    assert ms_ssim_scales(480, 32) == 2


def test_ms_ssim_of_flat_clips_is_the_luminance_term_at_the_coarsest_scale() -> None:
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    expected = luminance ** (0.2856 / (0.0448 + 0.2856))
    assert ms_ssim(flat(100, size=32), flat(150, size=32)) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (176, 177)])
def test_pixel_measures_agree_with_torchmetrics(size: tuple[int, int]) -> None:
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    from torchmetrics.functional.image.ssim import _ssim_update

    generator = np.random.default_rng(size[0])
    a = generator.integers(0, 256, (1, *size, 3), dtype=np.uint8)
    a = (a * 0.2 + np.linspace(0, 200, size[1])[:, None]).astype(np.uint8)
    b = (a * 0.9 + generator.normal(0, 12, a.shape)).clip(0, 255).astype(np.uint8)
    x, y = (torch.from_numpy(clip).permute(0, 3, 1, 2).double() for clip in (a, b))
    options = {"gaussian_kernel": True, "sigma": 1.5, "kernel_size": 11}
    assert psnr_db(a, b) == pytest.approx(image.peak_signal_noise_ratio(y, x, data_range=255.0).item(), abs=1e-5)

    # torchmetrics pads by reflection and counts the border; Wang et al. count only whole windows, and so do we.
    def whole_windows(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        values = _ssim_update(y, x, data_range=255.0, return_full_image=True, **options)[1]
        return values[..., 5:-5, 5:-5].flatten(1).mean(1)

    assert ssim(a, b) == pytest.approx(whole_windows(x, y).mean().item(), abs=1e-5)
    weights = torch.tensor((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)).double()[: ms_ssim_scales(*size)]
    product = torch.ones(1, dtype=torch.float64)
    for index, weight in enumerate(weights / weights.sum()):
        structure = _ssim_update(y, x, data_range=255.0, return_contrast_sensitivity=True, **options)[1]
        part = whole_windows(x, y) if index == len(weights) - 1 else structure
        product *= part.clamp(min=0) ** weight
        x, y = (torch.nn.functional.avg_pool2d(clip, 2) for clip in (x, y))
    assert ms_ssim(a, b) == pytest.approx(product.mean().item(), abs=1e-5)
    if len(weights) == 5:  # its own function differs by that border of the coarsest scale, and by nothing else
        x, y = (torch.from_numpy(clip).permute(0, 3, 1, 2).double() for clip in (a, b))
        theirs = image.multiscale_structural_similarity_index_measure(y, x, data_range=255.0).item()
        assert ms_ssim(a, b) == pytest.approx(theirs, abs=0.01)


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


def test_flicker_is_seen_and_steady_change_is_not() -> None:
    ramp = np.stack([flat(10 * frame, frames=1)[0] for frame in range(1, 8)])
    steeper = np.stack([flat(20 * frame, frames=1)[0] for frame in range(1, 8)])
    flickering = ramp.copy()
    flickering[1::2] += 5
    assert flicker_ratio(ramp, steeper) == 1  # both change steadily: motion_ratio tells them apart
    assert motion_ratio(ramp, steeper) == pytest.approx(2)
    assert flicker_ratio(ramp, flickering) == pytest.approx(10 / 0.01)
    doubled = ramp.copy()
    doubled[1::2] += 10
    assert flicker_ratio(flickering, doubled) == pytest.approx(2)


@pytest.mark.parametrize("steps", range(1, 8))
def test_thirds_of_the_steps_are_even_and_lose_no_step(steps: int) -> None:
    errors = [2.0**step for step in range(steps)]
    thirds = error_by_third(errors)
    sizes = {1: (0, 1, 0), 2: (1, 0, 1), 3: (1, 1, 1), 4: (1, 2, 1), 5: (2, 1, 2), 6: (2, 2, 2), 7: (2, 3, 2)}[steps]
    start = 0
    for size, value in zip(sizes, thirds.values(), strict=True):
        assert value == (pytest.approx(np.mean(errors[start : start + size])) if size else None)
        start += size
    assert start == steps
    assert set(error_by_third([]).values()) == {None}


@pytest.mark.parametrize(("frames", "absent"), [(1, {"temporal_difference_rmse", "motion_ratio", "flicker_ratio"}),
                                                (2, {"flicker_ratio"}), (3, set())])  # fmt: skip
def test_short_clips_lack_only_what_needs_more_frames(frames: int, absent: set[str]) -> None:
    pair = Pair(flat(100, frames), flat(101, frames), np.ones(3), np.ones(3), [0.1, 0.2, 0.4])
    assert {name for name, value in measure(pair).items() if value is None} == absent
    assert {name for name, value in fidelity([measure(pair)]).items() if value is None} == absent


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
    assert flicker_ratio(clip, clip) == 1
    assert ms_ssim(clip, clip) == pytest.approx(1)


@few
@given(a=clips, b=clips)
def test_symmetry_and_bounds(a: np.ndarray, b: np.ndarray) -> None:
    assert psnr_db(a, b) == pytest.approx(psnr_db(b, a))
    assert ssim(a, b) == pytest.approx(ssim(b, a))
    assert temporal_difference_error(a, b) == pytest.approx(temporal_difference_error(b, a))
    assert motion_ratio(a, b) * motion_ratio(b, a) == pytest.approx(1)
    assert 0 <= psnr_db(a, b) <= PSNR_CAP_DB
    assert -1 <= ssim(a, b) <= 1 + 1e-12
    assert ms_ssim(a, b) == pytest.approx(ms_ssim(b, a))
    assert 0 <= ms_ssim(a, b) <= 1 + 1e-12
    assert flicker_ratio(a, b) * flicker_ratio(b, a) == pytest.approx(1)


@few
@given(seed=st.integers(0, 10_000), weak=st.floats(1, 10), factor=st.floats(1.5, 4))
def test_more_noise_is_never_closer(seed: int, weak: float, factor: float) -> None:
    clip = moving_square()
    little, much = (moving_square(noise=sigma, seed=seed) for sigma in (weak, weak * factor))
    assert psnr_db(clip, little) > psnr_db(clip, much)
    assert ssim(clip, little) > ssim(clip, much)
    assert ms_ssim(clip, little) > ms_ssim(clip, much)
    assert flicker_ratio(clip, little) < flicker_ratio(clip, much)
    assert temporal_difference_error(clip, little) < temporal_difference_error(clip, much)


@few
@given(start=st.integers(0, 5), stride=st.integers(2, 4))
def test_a_slowed_clip_moves_less(start: int, stride: int) -> None:
    clip = moving_square(start)
    slowed = clip[np.arange(len(clip)) // stride]
    assert motion_ratio(clip, slowed) < 1


def test_tensors_and_arrays_agree() -> None:
    a, b = moving_square(), moving_square(noise=5)
    for one in (psnr_db, ssim, ms_ssim, temporal_difference_error, motion_ratio, flicker_ratio):
        assert one(a, b) == one(torch.from_numpy(a), torch.from_numpy(b))


def test_fidelity_is_the_mean_over_clips() -> None:
    latents = np.ones((4, 2, 2))
    pairs = [
        Pair(flat(100, 3), flat(100 + error, 3), latents, latents * (1 + error / 100), [0.1, error, 3.0])
        for error in (10, 20)
    ]
    result = fidelity([measure(pair) for pair in pairs])
    both = [psnr_db(pair.reference, pair.candidate) for pair in pairs]
    assert set(result) == FIDELITY_KEYS
    assert result["clips"] == 2
    assert isinstance(result["clips"], int)
    assert result["psnr_db"] == pytest.approx(sum(both) / 2)
    assert result["psnr_db_std"] == pytest.approx((both[0] - both[1]) / 2)
    assert result["latent_relative_mse"] == pytest.approx((0.01 + 0.04) / 2)
    assert [result[f"latent_error_{third}"] for third in ("early", "middle", "late")] == pytest.approx([0.1, 15, 3])
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
