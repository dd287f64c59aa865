"""The sound that some pipelines make beside their video, and how far it is from full precision's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2q.evaluation.metrics import mean_of, ratio_db

SOUND_MEASURES = ("snr_db", "log_spectral_distance_db")
# Of the spectra: 1,024 samples are 43 ms at 24 kHz.
WINDOW, HOP = 1024, 256
# What lies so far below a sound's loudest spot is taken as silence: nobody hears it, and its logarithm is noise.
FLOOR_DB = 80.0


@dataclass(frozen=True, eq=False)
class Sound:
    """Sound of a clip."""

    samples: np.ndarray
    """float32 [C, n], -1 … 1, one row a channel."""
    rate: int
    """Samples per second."""

    def __post_init__(self) -> None:
        shape = self.samples.shape
        if self.samples.dtype != np.float32 or len(shape) != 2 or shape[0] not in (1, 2) or shape[1] == 0:
            raise ValueError(f"sound must be float32 [1 or 2, n], got {self.samples.dtype} {list(shape)}")


def snr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Signal-to-noise ratio, 10 log₁₀ ‖a‖² / ‖a − b‖² in dB, at most `PSNR_CAP_DB`.

    Args:
        reference, candidate: float [C, n].
    """
    a, b = _both(reference, candidate)
    error, power = float((a - b).square().sum()), float(a.square().sum())
    return ratio_db(max(power, torch.finfo(a.dtype).tiny), error)


def log_spectral_distance_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Log-spectral distance (Gray and Markel 1976): RMS over frequencies of the spectra's difference in dB, mean over time.

    Blind to phase, which `snr_db` is not: two takes of the same rain are far apart there and near here. Spectra are of Hann
    windows of `WINDOW` samples every `HOP`; both are floored `FLOOR_DB` below the reference's loudest spot.

    Args:
        reference, candidate: float [C, n].
    """
    a, b = (_power(sound) for sound in _both(reference, candidate))
    floor = (float(a.max()) or 1.0) * 10 ** (-FLOOR_DB / 10)
    difference = 10 * (a.clamp(min=floor).log10() - b.clamp(min=floor).log10())
    return float(difference.square().mean(-2).sqrt().mean())


def sound_measures(reference: Sound | None, candidate: Sound | None) -> dict[str, float] | None:
    """Both measures of a pair by name; None of a silent one."""
    if reference is None or candidate is None:
        return None
    pair = reference.samples, candidate.samples
    return {"snr_db": snr_db(*pair), "log_spectral_distance_db": log_spectral_distance_db(*pair)}


def mean_sound(measured: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    """Means over the clips that have sound; None where none has."""
    heard = [one for one in measured if one is not None]
    return {name: mean_of(one[name] for one in heard) for name in SOUND_MEASURES} if heard else None


def _both(reference: np.ndarray, candidate: np.ndarray) -> tuple[Tensor, Tensor]:
    if reference.shape != candidate.shape:
        raise ValueError(f"the sounds differ in shape: {list(reference.shape)} and {list(candidate.shape)}")
    a, b = (torch.from_numpy(np.ascontiguousarray(sound)).double() for sound in (reference, candidate))
    return a, b


def _power(sound: Tensor) -> Tensor:
    """|spectrum|², [C, frequencies, times]."""
    window = torch.hann_window(WINDOW, dtype=sound.dtype)
    spectra = torch.stft(sound, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    return spectra.abs().square()
