"""Sound is measured as the field does, and comes back from the files that it is written to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_clips import FPS, moving_square
from torchmetrics.functional.audio import signal_noise_ratio

from s2q.evaluation import video
from s2q.evaluation.metrics import PSNR_CAP_DB
from s2q.evaluation.sound import (
    Sound,
    log_spectral_distance_db,
    mean_sound,
    snr_db,
    sound_measures,
)

RATE = 24_000


def tones(*frequencies: float, seconds: float = 1.5) -> np.ndarray:
    """One channel a frequency: float32 [C, n]."""
    time = np.arange(int(RATE * seconds)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * time) for frequency in frequencies]).astype(np.float32)


def noise(seed: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, RATE)).astype(np.float32)


def loudest_hertz(sound: Sound, channel: int = 0) -> float:
    spectrum = np.abs(np.fft.rfft(sound.samples[channel][: sound.rate]))
    return float(spectrum.argmax())


def test_the_ratio_is_torchmetrics() -> None:
    clean, noisy = noise(0, 1), noise(0, 1) + 0.3 * noise(1, 1)
    theirs = signal_noise_ratio(torch.from_numpy(noisy).double(), torch.from_numpy(clean).double()).item()
    assert snr_db(clean, noisy) == pytest.approx(theirs, abs=1e-6)


def test_equal_sounds_are_equal_and_silence_is_no_error() -> None:
    assert (snr_db(noise(0), noise(0)), log_spectral_distance_db(noise(0), noise(0))) == (PSNR_CAP_DB, 0.0)
    silence = np.zeros((1, 5000), np.float32)
    assert (snr_db(silence, silence), log_spectral_distance_db(silence, silence)) == (PSNR_CAP_DB, 0.0)
    assert np.isfinite(snr_db(silence, noise(0, 1)[:, :5000]))


def test_half_as_loud_is_six_decibels_in_every_frequency() -> None:
    assert log_spectral_distance_db(noise(0), 0.5 * noise(0)) == pytest.approx(20 * np.log10(2), abs=1e-3)


def test_the_spectrum_does_not_mind_a_phase_and_the_waveform_does() -> None:
    time = np.arange(RATE) / RATE
    shifted = [np.sin(2 * np.pi * 750 * time + phase)[None].astype(np.float32) for phase in (0, 1)]
    assert snr_db(*shifted) < 1
    assert log_spectral_distance_db(*shifted) < log_spectral_distance_db(shifted[0], tones(900, seconds=1)) / 5


def test_a_sound_shorter_than_a_window_is_measured() -> None:
    assert log_spectral_distance_db(noise(0)[:, :300], 0.5 * noise(0)[:, :300]) > 3


def test_lengths_that_differ_and_things_that_are_no_sound_are_errors() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        snr_db(noise(0), noise(0)[:, :-1])
    for wrong in (noise(0).astype(np.float64), noise(0)[0], noise(0, 3), noise(0)[:, :0]):
        with pytest.raises(ValueError, match="sound must be float32"):
            Sound(wrong, RATE)


def test_clips_without_sound_do_not_count() -> None:
    heard = Sound(noise(0), RATE), Sound(0.5 * noise(0), RATE)
    measured = [sound_measures(*heard), sound_measures(None, None)]
    assert measured[1] is None
    assert mean_sound(measured) == measured[0]
    assert mean_sound([None]) is None


@pytest.mark.parametrize("frequencies", [(440.0,), (440.0, 660.0)])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_what_is_written_beside_a_clip_is_heard(tmp_path: Path, container: str, frequencies: tuple[float, ...]) -> None:
    path, sound = tmp_path / f"clip.{container}", Sound(tones(*frequencies), RATE)
    if container == "mp4":
        video.write_mp4(path, moving_square(), FPS, 1, sound)
    else:
        path.write_bytes(video.webm_bytes(moving_square(), FPS, 1, sound))
        assert path.read_bytes() == video.webm_bytes(moving_square(), FPS, 1, sound)
    back = video.read_sound(path)
    assert len(back.samples) == len(frequencies)
    assert back.samples.shape[1] / back.rate == pytest.approx(1.5, abs=0.1)
    for channel, frequency in enumerate(frequencies):
        assert loudest_hertz(back, channel) == pytest.approx(frequency, abs=2)
    assert np.abs(back.samples).max() == pytest.approx(0.5, abs=0.1)
    assert len(video.read_clip(path)) == len(moving_square())


def test_a_silent_clip_has_no_sound(tmp_path: Path) -> None:
    video.write_mp4(tmp_path / "clip.mp4", moving_square(), FPS)
    assert video.read_sound(tmp_path / "clip.mp4") is None
