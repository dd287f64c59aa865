"""A made-up report and its figures: shapes of the real thing, numbers of no meaning."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_clips import FPS, moving_square

from s2q.evaluation.report import ClipPair, ReportFigures, TokenWeightFigure
from s2q.evaluation.sound import Sound
from s2q.evaluation.vbench import COLUMNS


@pytest.fixture
def figures() -> ReportFigures:
    pairs = [
        ClipPair(
            f"a blue square moves right, take {seed}",
            seed,
            moving_square(3),
            moving_square(4, 2, 4.0, seed),
            *(Sound(np.sin(np.arange(24_000) / pitch, dtype=np.float32)[None], 24_000) for pitch in (9, 10)),
        )
        for seed in range(3)
    ]
    weights = np.linspace(0, 2, 3 * 8 * 8).reshape(3, 8, 8)
    return ReportFigures(pairs, TokenWeightFigure(moving_square()[::4], weights, "The middle block."), FPS)


@pytest.fixture
def report(figures: ReportFigures) -> dict:
    generator = np.random.default_rng(0)
    prompts, steps = 5, 8
    readback = {"background": 1.0, "colour": 0.98, "motion": 0.9, "shape": 0.95}
    return {
        "recipe": "s2q_vdit",
        "bits": "W4A6",
        "seed": 0,
        "pipeline": "made up",
        "command": "s2q run made-up --bits W4A6",
        "versions": {"torch": "0.0"},
        "storage": {
            "float_bytes": 21_300_000,
            "quantized_bytes": 5_900_000,
            "bits_per_block_weight": 4.31,
            "parts": {"block weights": [18_900_000, 4_700_000], "scales": [0, 300_000], "other": [2_400_000, 900_000]},
        },
        "fidelity": {
            "psnr_db": 30.0,
            "ssim": 0.9,
            "ms_ssim": 0.95,
            "ms_ssim_scales": 2,
            "latent_error_early": 0.001,
            "latent_error_middle": 0.002,
            "latent_error_late": 0.0043,
            "flicker_ratio": 1.04,
            "latent_relative_mse": 0.01,
            "temporal_difference_rmse": 4.0,
            "motion_ratio": 0.97,
            "clips": 3,
            "psnr_db_std": 1.5,
        },
        "latent_error_by_step": generator.random((3, steps)).cumsum(1).tolist(),
        "readback": {"float": readback, "quantized": {name: score - 0.02 for name, score in readback.items()}},
        "seconds": {"trajectories": 41.0, "calibration": 731.0, "evaluation": 0.4},
        "clip_seconds": {"float": 3.1, "quantized": 4.4},
        "blocks": [{"name": f"blocks.{i}", "before": 1e-3 * 2**i, "after": 4e-4 * 2**i} for i in range(4)],
        "salience": {
            "scores": generator.random((prompts, steps)).tolist(),
            "timesteps": np.linspace(999, 20, steps).tolist(),
            "chosen": [[0, 1], [0, 2], [3, 7]],
            "prompts": [f"calibration prompt {i}" for i in range(prompts)],
        },
        "clips": [
            {
                "prompt": pair.prompt,
                "seed": pair.seed,
                "psnr_db": 30.0 + pair.seed,
                "ssim": 0.9,
                "motion_ratio": 0.97,
                "sound": {"snr_db": 27.5, "log_spectral_distance_db": 3.0},
            }
            for pair in figures.clips
        ],
        "appearance": {
            name: {"float": 10.0, "quantized": 9.5, "difference": -0.5, "difference_std": 0.25}
            for name in ("sharpness", "contrast", "colourfulness", "noise")
        },
        "learned": {
            "models": [{"role": "clip", "folder": "made-up", "sha256": "0" * 64}],
            "measures": {
                name: {"float": 0.25, "quantized": 0.26, "difference": 0.01, "difference_std": 0.002}
                for name in ("clipsim", "clip_temp", "clipsim_evalcrafter", "clip_temp_evalcrafter", "dino_consistency")
            },
        },
        "vbench": {
            "version": "0.1.5",
            "videos": 251,
            "fps": 8.0,
            "scores": {"float": dict.fromkeys(COLUMNS, 61.25), "quantized": dict.fromkeys(COLUMNS, 60.5)},
        },
        "sound": {"snr_db": 21.5, "log_spectral_distance_db": 3.25},
        "notes": ["These numbers are made up."],
    }
