"""Measures of one clip by itself: known answers, what each must see, and what each must be blind to."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_clips import moving_square

from s2q.evaluation.appearance import APPEARANCE, appearance, colourfulness, contrast, noise, paired, sharpness


def clip_of(frame: np.ndarray, frames: int = 2) -> np.ndarray:
    return np.repeat(frame[None].astype(np.uint8), frames, axis=0)


def test_a_flat_grey_clip_has_none_of_anything() -> None:
    assert appearance(clip_of(np.full((8, 9, 3), 77))) == pytest.approx(dict.fromkeys(APPEARANCE, 0), abs=1e-9)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    frame = np.zeros((3, 4, 3))
    frame[1, 1] = 10  # the Laplacian is −40 at this pixel and 10 at its neighbour
    assert sharpness(clip_of(frame)) == pytest.approx(np.var([-40, 10]))


def test_contrast_is_the_deviation_of_grey() -> None:
    frame = np.zeros((4, 4, 3))
    frame[:2] = 100
    assert contrast(clip_of(frame)) == pytest.approx(50)
    frame[:2] = (100, 0, 0)
    assert contrast(clip_of(frame)) == pytest.approx(0.299 * 50)


def test_colourfulness_of_one_colour_and_of_two() -> None:
    red = np.zeros((4, 4, 3))
    red[..., 0] = 200  # rg = 200, yb = 100, no spread
    assert colourfulness(clip_of(red)) == pytest.approx(0.3 * np.hypot(200, 100))
    both = red.copy()
    both[:2] = (0, 0, 200)  # rg = 0 or 200, yb = −200 or 100
    assert colourfulness(clip_of(both)) == pytest.approx(np.hypot(100, 150) + 0.3 * np.hypot(100, -50))


@pytest.mark.parametrize("sigma", [2.0, 8.0])
def test_noise_is_estimated_in_its_own_unit_and_gradients_are_none(sigma: float) -> None:
    rows, columns = np.mgrid[:128, :128]
    ramp = np.repeat((rows // 2 + columns // 2)[..., None] + 60, 3, axis=2).astype(float)
    grey = np.random.default_rng(0).normal(0, sigma, (128, 128, 1))  # the same in all channels
    assert noise(clip_of(np.repeat((rows + columns)[..., None], 3, axis=2))) == pytest.approx(0, abs=1e-9)
    assert noise(clip_of((ramp + grey).round().clip(0, 255))) == pytest.approx(sigma, rel=0.1)


def test_blur_and_noise_move_what_they_should() -> None:
    clip = moving_square(noise=3)
    blurred = ((clip.astype(int) + np.roll(clip, 1, axis=1) + np.roll(clip, 1, axis=2)) // 3).astype(np.uint8)
    before, after = appearance(clip), appearance(blurred)
    assert after["sharpness"] < before["sharpness"]
    assert after["noise"] < before["noise"]


def test_pairs_are_subtracted_twin_by_twin() -> None:
    rows = paired([{"a": 1.0}, {"a": 5.0}], [{"a": 2.0}, {"a": 8.0}])
    assert rows == {"a": {"float": 3.0, "quantized": 5.0, "difference": 2.0, "difference_std": 1.0}}


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\]"):
        contrast(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="at least 3x3 pixels, got 2x8"):
        noise(np.zeros((1, 2, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="in pairs, got 1 and 0"):
        paired([{"a": 1.0}], [])
