"""What stands beside the noise is kept apart from it, what changes with time is kept for each step, and neither is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, STEPS
from tiny_media import write_image

from s2q.calibration import recording
from s2q.calibration.calls import calls_by_section
from s2q.calibration.recording import record_trajectories
from s2q.calibration.salience import diffusion_salience, moving
from s2q.calibration.trajectory import TrajectoryStore
from s2q.media import Prompt
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.progress import NoProgress
from s2q.recipes import get_recipe
from s2q.run import settings

Record = Callable[[Callable[[int, int, dict[str, Any]], dict[str, Any]]], TrajectoryStore]


@pytest.fixture
def record(open_family: Callable[..., OpenPipeline], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Record:
    """Record the tiny pipeline of Wan as if it gave what a function of (step, branch, arguments) says besides."""

    def record_it(more: Callable[[int, int, dict[str, Any]], dict[str, Any]]) -> TrajectoryStore:
        def changed(*args: Any) -> Any:
            (section,) = calls_by_section(*args)
            for step, calls in enumerate(section.steps):
                for branch, call in enumerate(calls):
                    call |= more(step, branch, call)
            return [section]

        monkeypatch.setattr(recording, "calls_by_section", changed)
        return record_trajectories(open_family("wan"), PROMPTS[:1], 0, tmp_path, NoProgress())

    return record_it


def test_what_changes_from_step_to_step_is_kept_for_each(record: Record) -> None:
    def more(step: int, branch: int, call: dict[str, Any]) -> dict[str, Any]:
        return {"sound": torch.full((1, 3), 10.0 * step + branch), "level": torch.tensor(step)}

    store = record(more)
    for step in range(STEPS):
        cond, uncond = (store.arguments(0, step, branch) for branch in ("cond", "uncond"))
        assert torch.equal(cond["sound"], torch.full((1, 3), 10.0 * step))
        assert torch.equal(uncond["sound"], torch.full((1, 3), 10.0 * step + 1))
        assert torch.equal(store.arguments(0, step)["sound"], torch.cat([uncond["sound"], cond["sound"]]))
        assert int(cond["level"]) == step


def test_a_number_that_changes_from_step_to_step_is_refused(record: Record) -> None:
    with pytest.raises(PipelineError, match="'strength' of the transformer changes from step to step"):
        record(lambda step, branch, call: {"strength": float(step)})


def test_channels_beside_the_noise_are_kept_once_and_come_back_behind_it(record: Record) -> None:
    image = torch.randn(1, 5, 2, 4, 4)

    def more(step: int, branch: int, call: dict[str, Any]) -> dict[str, Any]:
        return {"hidden_states": torch.cat([call["hidden_states"], image], dim=1)}

    store = record(more)
    assert store.latents(0).shape == (STEPS + 1, 4, 2, 4, 4), "salience sees the noise alone"
    for branch in ("cond", "uncond"):
        given = store.arguments(0, 1, branch)["hidden_states"]
        assert torch.equal(given, torch.cat([store.latents(0)[1:2], image], dim=1))


def test_channels_that_change_beside_the_noise_are_refused(record: Record) -> None:
    def more(step: int, branch: int, call: dict[str, Any]) -> dict[str, Any]:
        return {"hidden_states": torch.cat([torch.ones(1, 2, 2, 4, 4), call["hidden_states"]], dim=1)}

    with pytest.raises(PipelineError, match="the 2 channels beside the 4 of the latents change from step to step"):
        record(more)


def test_a_frame_that_is_held_fixed_does_not_thin_out_how_far_a_step_goes() -> None:
    noisy = torch.randn(5, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moving(noisy), noisy.flatten(1))
    held = torch.cat([torch.ones(5, 4, 1, 3, 3), noisy], dim=2)
    assert torch.equal(diffusion_salience(moving(held)), diffusion_salience(noisy))
    assert (diffusion_salience(held) < diffusion_salience(noisy)).all()


def test_another_image_under_the_same_name_is_another_run(opened: OpenPipeline, tmp_path: Path) -> None:
    made = []
    for seed in range(2):
        image = write_image(tmp_path / "a.png", seed)
        made.append(settings(opened, get_recipe("s2q_vdit", "W4A6"), [Prompt("a gull", image=image)], 0))
    assert made[0] != made[1]
    assert made[0] | {"prompts": made[1]["prompts"]} == made[1]
