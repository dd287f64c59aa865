"""The study of what calibration fits: what it counts, not what it finds."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import PROMPTS

from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.progress import NoProgress
from s2q.run import Quantized


@pytest.fixture
def study(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("generalisation")


@pytest.fixture
def store(opened: OpenPipeline, tmp_path: Path) -> TrajectoryStore:
    return record_trajectories(opened, PROMPTS, 0, tmp_path, NoProgress())


def test_the_float_model_errs_nowhere(study: ModuleType, opened: OpenPipeline, store: TrajectoryStore) -> None:
    assert study.errors(opened, opened.transformer, store) == (0, {})


def test_fewer_bits_err_more_in_every_kind_of_linear(
    study: ModuleType, opened: OpenPipeline, store: TrajectoryStore, quantized: Callable[..., Quantized]
) -> None:
    folders = [quantized("rtn", bits).folder for bits in ("W8A8", "W4A4")]
    (few, few_kinds), (many, many_kinds) = (
        study.errors(opened, load_transformer(folder, torch.float32), store) for folder in reversed(folders)
    )
    assert 0 < many < few
    assert few_kinds.keys() == many_kinds.keys()
    assert {"attn1.to_q", "ff.net.2"} < few_kinds.keys()
    assert all(0 < many_kinds[kind] < few_kinds[kind] for kind in few_kinds)
    assert not any(module._forward_hooks for module in opened.transformer.modules()), (
        "the model is given back as it was"
    )


def test_rows_are_means_over_seeds_the_nearest_first(study: ModuleType) -> None:
    def found(seen: float, held: float) -> dict:
        return {
            "seen": {"prediction": seen, "linears": {"up": 1.0}},
            "unseen": {"prediction": held, "linears": {"up": 3.0}},
            "held_out": {"prediction": held, "linears": {"up": 2.0}},
        }

    near, far = study.summary({"far": [found(1, 8)], "near": [found(1, 2), found(2, 4)]})
    assert (near["variant"], near["seeds"], near["seen"], near["held_out"]) == ("near", 2, 1.5, 3)
    assert near["held_out_std"] == pytest.approx(2**0.5)
    assert near["unseen_over_seen"] == {"up": 3.0}
    assert far["held_out_std"] is None
