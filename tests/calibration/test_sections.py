"""Framepack and Wan Animate make a clip in sections, each from noise of its own: nothing of one is taken for another's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, STEPS, calls_by_step, cheap
from tiny_media import MEDIA_PIPELINES, with_media
from tiny_pipelines import with_stand_ins

from s2q.calibration.calls import calls_by_section, same
from s2q.calibration.recording import record_trajectories
from s2q.calibration.salience import diffusion_salience, salience_of_prompt
from s2q.calibration.trajectory import SECTIONS, TrajectoryStore
from s2q.checkpoint import PROVENANCE_NAME
from s2q.models.geometry import geometry
from s2q.models.pipelines import OpenPipeline
from s2q.planning import plan
from s2q.progress import NoProgress
from s2q.run import quantize
from s2q.storage import derived_seed
from s2q.twins import generate

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers about itself
FRAMEPACK = MEDIA_PIPELINES["framepack"]
GUIDED = {"true_cfg_scale": 3.0, "negative_prompt": "left"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FRAMEPACK.save(tmp_path_factory.mktemp("framepack") / "pipeline")


@pytest.fixture
def opened(folder: Path) -> OpenPipeline:
    return FRAMEPACK.open(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> list[str]:
    return with_media(PROMPTS, ("image", "last_image"), tmp_path)


@pytest.fixture
def store(opened: OpenPipeline, prompts: list[str], tmp_path: Path) -> TrajectoryStore:
    return record_trajectories(opened, prompts[:1], 0, tmp_path / "recorded", NoProgress())


def test_every_section_goes_from_its_own_noise_to_its_own_latent(
    opened: OpenPipeline, store: TrajectoryStore, prompts: list[str]
) -> None:
    sections = calls_by_section(opened, prompts[0], derived_seed(0, "trajectory", 0))
    assert [len(section.steps) for section in sections] == [STEPS, STEPS]
    kept = store.sections(0)
    assert len(store.timesteps()) == opened.steps == 2 * STEPS
    for section, latents in zip(sections, kept, strict=True):
        assert torch.equal(latents[0], section.steps[0][0]["hidden_states"][0])
        assert torch.equal(latents[-1], section.final[0])
    assert not torch.equal(kept[0][0], kept[1][0])
    assert [store.progress(0, step) for step in range(2 * STEPS)] == [step / STEPS for step in range(STEPS)] * 2


def test_salience_never_looks_from_one_section_into_the_next(opened: OpenPipeline, store: TrajectoryStore) -> None:
    diffusion, quantization = salience_of_prompt(store, 0, opened.transformer, opened.family, "latents")
    assert torch.equal(diffusion, torch.cat([diffusion_salience(latents) for latents in store.sections(0)]))
    assert quantization.shape == (2 * STEPS,)
    _, hidden = salience_of_prompt(store, 0, opened.transformer, opened.family, "hidden_states")
    assert hidden.shape == (2 * STEPS,)


def test_history_is_kept_once_a_section(store: TrajectoryStore) -> None:
    first, second = (store.arguments(0, step)["latents_history_2x"] for step in (STEPS - 1, STEPS))
    assert not torch.equal(first, second)
    with store._open(0) as file:
        kept = {name: file.get_slice(name).get_shape()[0] for name in file.keys() if name.startswith(SECTIONS)}  # noqa: SIM118
        assert not [name for name in file.keys() if name.startswith("steps.")]  # noqa: SIM118
    assert {"sections.arguments.latents_history_2x", "sections.shared.indices_latents"} <= kept.keys()
    assert set(kept.values()) == {2}


def test_two_places_in_time_are_not_taken_for_two_branches(folder: Path, prompts: list[str], tmp_path: Path) -> None:
    """The clean frames are two, and so are the guidance branches."""
    opened = FRAMEPACK.open(folder)
    opened.call |= GUIDED
    store = record_trajectories(opened, prompts[:1], 0, tmp_path, NoProgress())
    steps, _ = calls_by_step(opened, prompts[0], derived_seed(0, "trajectory", 0))
    for step, (cond, uncond) in enumerate(steps):
        for branch, call in (("cond", cond), ("uncond", uncond)):
            stored: dict[str, Any] = store.arguments(0, step, branch)
            assert [name for name in call if not same(stored[name], call[name])] == []
    assert store.arguments(0, 1)["indices_latents_clean"].shape == (2,)


@pytest.mark.parametrize("step", [-1, 2 * STEPS])
def test_a_step_beyond_the_last_section_is_an_error(step: int, store: TrajectoryStore) -> None:
    with pytest.raises(IndexError, match=f"step {step} of {2 * STEPS}"):
        store.arguments(0, step)


def test_a_plan_counts_the_steps_of_all_sections(folder: Path, opened: OpenPipeline) -> None:
    recipe = cheap("s2q_vdit", "W4A6")
    one, two = (plan(folder, recipe, opened.call | {"num_frames": frames}, timed=False) for frames in (9, 13))
    assert two.tokens == one.tokens
    assert two.disk_bytes > one.disk_bytes


@pytest.fixture(scope="module")
def animate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MEDIA_PIPELINES["wan-animate"].save(tmp_path_factory.mktemp("animate") / "pipeline")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every test."""
    with_stand_ins("WanAnimatePipeline", monkeypatch)


@torch.no_grad()
def test_wan_animate_puts_a_figure_into_another_video(animate: Path, tmp_path: Path) -> None:
    opened = MEDIA_PIPELINES["wan-animate"].open(animate)
    opened.call["mode"] = "replace"
    media = (*MEDIA_PIPELINES["wan-animate"].media, "background_video", "mask_video")
    prompts = with_media(PROMPTS[:1], media, tmp_path, frames=9)
    opened.check(prompts)
    store = record_trajectories(opened, prompts, 0, tmp_path, NoProgress())
    steps, _ = calls_by_step(opened, prompts[0], derived_seed(0, "trajectory", 0))
    for step, (call,) in enumerate(steps):
        stored = store.arguments(0, step)
        assert [name for name in call if not same(stored[name], call[name])] == []


@torch.no_grad()
def test_wan_animate_begins_a_section_with_the_last_frames_of_the_one_before(animate: Path, tmp_path: Path) -> None:
    opened = MEDIA_PIPELINES["wan-animate"].open(animate)
    # What the pipeline gives back is scaled for the VAE by these, and no x_t.
    opened.pipe.vae.register_to_config(latents_mean=[0.3] * 4, latents_std=[2.0] * 4)
    prompts = with_media(PROMPTS[:1], MEDIA_PIPELINES["wan-animate"].media, tmp_path, frames=9)
    store = record_trajectories(opened, prompts, 0, tmp_path, NoProgress())
    left: list[torch.Tensor] = []
    generate(opened, prompts[0], derived_seed(0, "trajectory", 0), left.append)
    assert len(left) == 2 * STEPS
    for section, latents in enumerate(store.sections(0)):
        assert torch.equal(latents[1:], torch.cat(left[section * STEPS : (section + 1) * STEPS]))
    first, second = (store.arguments(0, step)["hidden_states"][:, 4:] for step in (0, STEPS))
    assert not torch.equal(first, second)
    steps, _ = calls_by_step(opened, prompts[0], derived_seed(0, "trajectory", 0))
    for step, (call,) in enumerate(steps):
        stored = store.arguments(0, step)
        assert [name for name in call if not same(stored[name], call[name])] == []


def test_of_poses_of_different_lengths_the_sections_that_all_have_are_candidates(animate: Path, tmp_path: Path) -> None:
    opened = MEDIA_PIPELINES["wan-animate"].open(animate)
    prompts = []
    for prompt, frames in zip(PROMPTS, (9, 5), strict=True):
        (tmp_path / str(frames)).mkdir()
        prompts += with_media([prompt], MEDIA_PIPELINES["wan-animate"].media, tmp_path / str(frames), frames)
    made = quantize(opened, cheap("gptq", "W4A6"), tmp_path / "out", prompts=prompts)
    provenance = json.loads((made.folder / PROVENANCE_NAME).read_text())
    assert [len(scores) for scores in provenance["salience"]] == [STEPS, STEPS]
    assert len(provenance["timesteps"]) == STEPS


@pytest.mark.parametrize(
    ("call", "size", "steps"),
    [
        ({"segment_frame_length": 77, "num_frames": 77}, 21, 20),
        ({"segment_frame_length": 77, "num_frames": 78}, 21, 40),
        ({"segment_frame_length": 5, "num_frames": 9}, 3, 40),
        ({"num_frames": None}, 21, 20),
    ],
)
def test_sections_of_wan_animate_are_planned_for(call: dict[str, int], size: int, steps: int, animate: Path) -> None:
    opened = MEDIA_PIPELINES["wan-animate"].open(animate)
    sizes = geometry(opened.family, opened.transformer.config, (4, 8), {"num_frames": 5} | call)
    assert (sizes.latent[0], sizes.steps) == (size, steps)
