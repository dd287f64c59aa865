"""What is read from disk by (prompt, step, branch) is what the pipeline fed its transformer."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, STEPS

from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore, trajectory_path
from s2q.models.pipelines import OpenPipeline, PipelineError
from s2q.progress import NoProgress
from s2q.storage import derived_seed


def watched(opened: OpenPipeline, prompt: str, seed: int) -> tuple[list[dict], torch.Tensor]:
    """Arguments of every call of the transformer, and the finished latent."""
    calls: list[dict] = []
    handle = opened.pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(seed)
    final = opened.pipe(prompt, generator=generator, output_type="latent", return_dict=False, **opened.call)[0]
    handle.remove()
    return calls, final


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_arguments_are_those_of_the_pipeline(prompt: int, opened: OpenPipeline, store: TrajectoryStore) -> None:
    calls, final = watched(opened, PROMPTS[prompt], derived_seed(0, "trajectory", prompt))
    assert len(calls) == STEPS
    for step, real in enumerate(calls):
        read = store.arguments(prompt, step)
        assert read.keys() == real.keys()
        for name in real:
            assert same(read[name], real[name]), name
    assert torch.equal(store.latents(prompt)[-1:], final)
    assert store.latents(prompt).shape[0] == STEPS + 1


@pytest.mark.parametrize(("branch", "row"), [("uncond", 0), ("cond", 1)])
def test_a_branch_is_its_row_of_the_batch(branch: str, row: int, opened: OpenPipeline, store: TrajectoryStore) -> None:
    both, one = store.arguments(1, 2), store.arguments(1, 2, branch)
    for name, value in both.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(one[name], value[row : row + 1]), name


def test_the_two_branches_differ_in_their_text_alone(store: TrajectoryStore) -> None:
    uncond, cond = store.arguments(0, 1, "uncond"), store.arguments(0, 1, "cond")
    differing = {name for name, v in cond.items() if isinstance(v, torch.Tensor) and not torch.equal(v, uncond[name])}
    assert differing == {"encoder_hidden_states"}


def test_steps_run_from_most_noise_to_least(store: TrajectoryStore) -> None:
    timesteps = store.timesteps()
    assert len(timesteps) == STEPS
    assert bool((timesteps.diff() < 0).all())


def test_prompts_have_noise_of_their_own(store: TrajectoryStore) -> None:
    assert not torch.equal(store.latents(0)[0], store.latents(1)[0])


def test_what_is_recorded_already_is_not_recorded_again(
    opened: OpenPipeline, store: TrajectoryStore, tmp_path: Path
) -> None:
    folder = tmp_path / "trajectories"
    shutil.copytree(store.folder, folder)
    before = trajectory_path(folder, 0).stat().st_mtime_ns
    trajectory_path(folder, 1).unlink()
    again = record_trajectories(opened, PROMPTS, 0, folder, NoProgress())
    assert trajectory_path(folder, 0).stat().st_mtime_ns == before
    assert torch.equal(again.latents(1), store.latents(1)), "the order of recording must not matter"


def test_a_file_cut_short_is_recorded_again(opened: OpenPipeline, store: TrajectoryStore, tmp_path: Path) -> None:
    folder = tmp_path / "trajectories"
    shutil.copytree(store.folder, folder)
    path = trajectory_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-10])
    again = record_trajectories(opened, PROMPTS, 0, folder, NoProgress())
    assert torch.equal(again.latents(1), store.latents(1))


def test_another_seed_gives_other_noise(opened: OpenPipeline, store: TrajectoryStore, tmp_path: Path) -> None:
    other = record_trajectories(opened, PROMPTS[:1], 1, tmp_path, NoProgress())
    assert not torch.equal(other.latents(0), store.latents(0))


def test_a_prompt_that_was_not_recorded_is_an_error(store: TrajectoryStore) -> None:
    with pytest.raises(FileNotFoundError, match="prompt 7"):
        store.arguments(7, 0)


@pytest.mark.parametrize("step", [STEPS, -1])
def test_a_step_that_was_not_run_is_an_error_and_not_the_finished_latent(step: int, store: TrajectoryStore) -> None:
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        store.arguments(0, step)


def test_without_guidance_there_is_one_branch(opened: OpenPipeline, tmp_path: Path) -> None:
    opened.call["guidance_scale"] = 1.0
    store = record_trajectories(opened, PROMPTS[:1], 0, tmp_path, NoProgress())
    assert store.arguments(0, 0)["hidden_states"].shape[0] == 1
    assert torch.equal(
        store.arguments(0, 0, "cond")["encoder_hidden_states"], store.arguments(0, 0)["encoder_hidden_states"]
    )


def test_arguments_that_change_from_step_to_step_are_refused(opened: OpenPipeline, tmp_path: Path) -> None:
    transformer = opened.pipe.transformer
    forward, counter = transformer.forward, iter(range(100))

    def changing(module, args, kwargs):
        return args, kwargs | {"ofs": next(counter)}

    transformer.register_forward_pre_hook(changing, with_kwargs=True)
    transformer.forward = lambda ofs=None, **kwargs: forward(**kwargs)
    with pytest.raises(PipelineError, match="ofs"):
        record_trajectories(opened, PROMPTS[:1], 0, tmp_path, NoProgress())
    assert not list(tmp_path.iterdir())
