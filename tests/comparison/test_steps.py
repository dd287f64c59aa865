"""The error of one step, on the tiny pipeline."""

from pathlib import Path

import pytest
import torch
from tiny import PROMPTS

from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore
from s2q.comparison.steps import EVERY, predictions, step_errors
from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.progress import NoProgress


@pytest.fixture
def store(opened: OpenPipeline, tmp_path: Path) -> TrajectoryStore:
    return record_trajectories(opened, list(PROMPTS), 0, tmp_path / "steps", NoProgress())


def test_full_precision_has_none(opened: OpenPipeline, store: TrajectoryStore) -> None:
    assert step_errors(opened, opened.transformer, store) == [0.0] * len(PROMPTS)


def test_it_is_the_relative_square_of_what_is_predicted(
    opened: OpenPipeline, store: TrajectoryStore, quantized
) -> None:
    candidate = load_transformer(quantized("rtn", "W4A6").folder, torch.float32).eval()
    errors = step_errors(opened, candidate, store)
    for prompt, error in enumerate(errors):
        steps = range(prompt % EVERY, len(store.timesteps(prompt)), EVERY)
        calls = [store.arguments(prompt, step) for step in steps]
        with torch.no_grad():
            pairs = [[model(**call)[0] for call in calls] for model in (opened.transformer, candidate)]
        expected, got = (torch.cat(side).double() for side in pairs)
        assert error == pytest.approx(float((expected - got).square().sum() / expected.square().sum()))
        assert 0 < error < 1


def test_another_step_of_each_prompt_is_looked_at(opened: OpenPipeline, store: TrajectoryStore) -> None:
    seen = [prompt for prompt, _, _ in predictions(opened, opened.transformer, store)]
    steps = len(store.timesteps())
    assert seen == [prompt for prompt in range(len(PROMPTS)) for _ in range(prompt % EVERY, steps, EVERY)]
