"""Guidance in one call of the transformer or in several: what is recorded is what the pipeline fed, in every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, STEPS, calls_by_step
from tiny_families import FAMILIES, make_wan_pipeline
from torch import Tensor

from s2q.calibration import recording
from s2q.calibration.calls import as_calls, calls_by_section
from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.families import HUNYUAN_VIDEO, WAN
from s2q.models.pipelines import OpenPipeline, PipelineError, open_pipeline
from s2q.progress import NoProgress
from s2q.storage import derived_seed

TRUE_GUIDANCE = {"true_cfg_scale": 3.0, "negative_prompt": "left"}
# (family, settings of the call) → the branches in the order of the pipeline's calls; "both" is one call with a batch.
WAYS = {
    "cogvideox": ("cogvideox", {}, ("both",)),
    "cogvideox-unguided": ("cogvideox", {"guidance_scale": 1.0}, ("both",)),
    "wan": ("wan", {}, ("cond", "uncond")),
    "wan-unguided": ("wan", {"guidance_scale": 1.0}, ("both",)),
    "hunyuan": ("hunyuan_video", {}, ("both",)),
    "hunyuan-true-guidance": ("hunyuan_video", TRUE_GUIDANCE, ("cond", "uncond")),
}


def record(opened: OpenPipeline, folder: Path) -> TrajectoryStore:
    return record_trajectories(opened, PROMPTS[:1], 0, folder, NoProgress())


def watched(opened: OpenPipeline) -> list[tuple[dict[str, Any], Tensor]]:
    """(arguments, output) of every call of the transformer for the first prompt."""
    calls: list[tuple[dict, Tensor]] = []
    handle = opened.pipe.transformer.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(derived_seed(0, "trajectory", 0))
    opened.pipe(PROMPTS[0], generator=generator, output_type="latent", **opened.call)
    handle.remove()
    return calls


@pytest.fixture
def one_thread():
    """Two threads may split the same sum differently from call to call, in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_recorded_call_repeats_the_pipelines_output_bit_for_bit(
    way: str, dtype: torch.dtype, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    name, settings, branches = WAYS[way]
    opened = open_family(name, dtype=dtype, **settings)
    store, calls = record(opened, tmp_path), watched(opened)
    assert len(calls) == STEPS * len(branches)
    for index, (real, expected) in enumerate(calls):
        step, branch = index // len(branches), branches[index % len(branches)]
        arguments = store.arguments(0, step, branch)
        assert arguments.keys() == real.keys()
        for key, value in real.items():
            if isinstance(value, Tensor):
                # HunyuanVideo's pipeline rounds the times of later steps to bfloat16; they are kept as float32 numbers.
                assert arguments[key].dtype == value.dtype or key == "timestep", key
                assert torch.equal(arguments[key].to(value.dtype), value), key
        assert torch.equal(opened.pipe.transformer(**arguments)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("way", ["wan", "hunyuan-true-guidance"])
def test_both_branches_are_one_batch_of_the_two_calls(
    way: str, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    name, settings, _ = WAYS[way]
    opened = open_family(name, **settings)
    store, calls = record(opened, tmp_path), watched(opened)
    both = store.arguments(0, 1)
    (cond, cond_output), (uncond, uncond_output) = calls[2:4]
    assert not torch.equal(cond["encoder_hidden_states"], uncond["encoder_hidden_states"])
    for key, value in both.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, torch.cat([uncond[key], cond[key]])), key
    output = opened.pipe.transformer(**both)[0]
    assert torch.allclose(output, torch.cat([uncond_output, cond_output]), atol=1e-5)


@pytest.mark.parametrize(("name", "branches"), [(name, family.branches) for name, family in FAMILIES.items()])
def test_a_sample_holds_the_branches_that_the_pipeline_makes_by_default(
    name: str, branches: int, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    opened = open_family(name)
    store = record(opened, tmp_path)
    assert store.arguments(0, 0)[opened.family.latents].shape[0] == branches
    for branch in ("uncond", "cond"):
        assert store.arguments(0, 0, branch)[opened.family.latents].shape[0] == 1
    assert bool((store.timesteps().diff() < 0).all())


@torch.no_grad()
def test_a_time_for_each_token_is_recorded(tmp_path: Path) -> None:
    """As Wan 2.2 5B does (expand_timesteps)."""
    folder = make_wan_pipeline(tmp_path / "pipeline", expand_timesteps=True)
    opened = open_pipeline(str(folder), **FAMILIES["wan"].call)
    store, calls = record(opened, tmp_path / "recorded"), watched(opened)
    assert store.timesteps().shape == (STEPS,)
    assert store.arguments(0, 1)["timestep"].shape == (2, FAMILIES["wan"].video_tokens)
    arguments, expected = store.arguments(0, 1, "cond"), calls[2][1]
    assert torch.equal(opened.pipe.transformer(**arguments)[0], expected)


def wan_calls(**changes_of_uncond: Any) -> list[dict[str, Any]]:
    cond = {
        "hidden_states": torch.ones(1, 4, 2, 4, 4),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.ones(1, 8, 24),
        "attention_kwargs": None,
    }
    return [cond, {key: value for key, value in (cond | changes_of_uncond).items() if value is not ...}]


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_hidden_states": torch.ones(1, 7, 24)},
        {"encoder_hidden_states": None},
        {"encoder_hidden_states": ...},
        {"attention_kwargs": {"scale": 2.0}},
        {"scale": 2.0},
    ],
    ids=["shape", "none", "missing", "plain", "more"],
)
def test_branches_that_cannot_be_stacked_stay_calls_of_their_own(change: dict[str, Any]) -> None:
    calls = wan_calls(**change)
    assert all(one is other for one, other in zip(as_calls(calls, WAN), calls, strict=True))


def test_calls_beside_the_two_branches_stay_calls_of_their_own() -> None:
    calls = [*wan_calls(), *wan_calls(attention_kwargs={"scale": 2.0})]
    joined, *others = as_calls(calls, WAN)
    assert joined["hidden_states"].shape[0] == 2
    assert all(one is other for one, other in zip(others, calls[2:], strict=True))


def test_texts_of_different_lengths_are_recorded_apart(
    open_family: Callable[..., OpenPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shorter(*args: Any) -> Any:
        (section,) = calls_by_section(*args)
        for _, uncond in section.steps:
            uncond["encoder_hidden_states"] = uncond["encoder_hidden_states"][:, :2]
        return [section]

    monkeypatch.setattr(recording, "calls_by_section", shorter)
    store = record(open_family("wan"), tmp_path)
    assert store.calls(0) == 2
    cond, uncond = (store.arguments(0, 1, call=call)["encoder_hidden_states"] for call in range(2))
    assert (cond.shape[:2], uncond.shape[:2]) == ((1, FAMILIES["wan"].call["max_sequence_length"]), (1, 2))


@pytest.mark.parametrize("name", ["hidden_states", "timestep"])
def test_branches_that_do_not_share_their_noise_or_time_have_each_their_own(
    name: str, open_family: Callable[..., OpenPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Cosmos does, whose conditional branch alone sees the frames that it begins with."""

    def changed(*args: Any) -> Any:
        (section,) = calls_by_section(*args)
        for _, uncond in section.steps:
            uncond[name] = uncond[name] + 1
        return [section]

    shared = record(open_family("wan"), tmp_path / "shared")
    monkeypatch.setattr(recording, "calls_by_section", changed)
    store = record(open_family("wan"), tmp_path / "own")
    assert torch.equal(store.latents(0), shared.latents(0)), "salience sees those of the conditional branch"
    assert torch.equal(store.timesteps(), shared.timesteps())
    for step in range(STEPS):
        expected = shared.arguments(0, step, "cond")[name]
        assert torch.equal(store.arguments(0, step, "cond")[name], expected)
        assert torch.equal(store.arguments(0, step, "uncond")[name], expected + 1)


def test_what_has_no_batch_is_shared_by_the_branches() -> None:
    angles = (torch.ones(8, 16), torch.zeros(8, 16))
    calls = [call | {"scale": torch.tensor(2.0), "angles": angles} for call in wan_calls()]
    (joined,) = as_calls(calls, HUNYUAN_VIDEO)
    assert joined["scale"].shape == ()
    assert joined["angles"] is angles
    assert joined["encoder_hidden_states"].shape == (2, 8, 24)


def test_guidance_in_some_steps_alone_is_refused(
    open_family: Callable[..., OpenPipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_family("wan")
    steps = iter(range(STEPS))
    monkeypatch.setattr(type(opened.pipe), "do_classifier_free_guidance", property(lambda _: next(steps, 0) < 2))
    with pytest.raises(PipelineError, match="2 times in its first step and 1 times in step 2"):
        record(opened, tmp_path)
    assert not list(tmp_path.iterdir())


def test_calls_are_told_apart_by_step(open_family: Callable[..., OpenPipeline]) -> None:
    steps, final = calls_by_step(open_family("wan"), PROMPTS[0], 0)
    assert [len(calls) for calls in steps] == [2] * STEPS
    assert final.shape == steps[0][0]["hidden_states"].shape
