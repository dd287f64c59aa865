import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2q.demo import scenes
from s2q.demo.scenes import Scene

any_scene = st.sampled_from(scenes.all_scenes())
any_seed = st.integers(0, 2**32 - 1)


@given(any_scene)
def test_caption_parses_back(scene: Scene) -> None:
    assert Scene.parse(scene.caption) == scene


def test_captions_tell_all_scenes_apart() -> None:
    captions = {scene.caption for scene in scenes.all_scenes()}
    assert len(captions) == len(scenes.all_scenes()) == 3 * 5 * 4 * 6
    assert "a red square moves left on a grey background" in captions


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red square",
        "a red square moves on a grey background",
        "a grey square moves left on a red background",
        "red a square moves left on a grey background",
        "a red square moves left on a grey background twice",
    ],
)
def test_parse_refuses_what_is_no_caption(caption: str) -> None:
    with pytest.raises(ValueError, match=r"unknown|not a caption"):
        Scene.parse(caption)


def test_split_is_disjoint_complete_and_leaves_every_word_in_training() -> None:
    training, heldout = set(scenes.training_scenes()), set(scenes.heldout_scenes())
    assert not training & heldout
    assert training | heldout == set(scenes.all_scenes())
    assert len(heldout) >= 64
    words = [{word for scene in part for word in scene.caption.split()} for part in (training, heldout)]
    assert words[0] == words[1]


@given(st.integers(0, 300), any_seed)
def test_prompts_are_reproducible_and_from_their_own_half(count: int, seed: int) -> None:
    calibration, evaluation = scenes.calibration_prompts(count, seed), scenes.evaluation_prompts(count, seed)
    assert calibration == scenes.calibration_prompts(count, seed)
    assert len(calibration) == len(evaluation) == count
    assert {Scene.parse(prompt) for prompt in calibration} <= set(scenes.training_scenes())
    assert {Scene.parse(prompt) for prompt in evaluation} <= set(scenes.heldout_scenes())
    assert len(set(evaluation)) == min(count, len(scenes.heldout_scenes()))


def test_negative_prompt_count_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        scenes.evaluation_prompts(-1)


@given(any_scene, any_seed)
def test_render_is_a_function_of_scene_and_seed(scene: Scene, seed: int) -> None:
    clip = scenes.render(scene, torch.Generator().manual_seed(seed))
    again = scenes.render(scene, torch.Generator().manual_seed(seed))
    assert clip.shape == (scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3)
    assert clip.dtype == torch.uint8
    assert torch.equal(clip, again)


@given(any_scene, any_seed)
def test_object_stays_inside_the_frame(scene: Scene, seed: int) -> None:
    clip = scenes.render(scene, torch.Generator().manual_seed(seed)).float()
    border = torch.cat([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], dim=1).flatten(0, 1)
    background = border.median(dim=0).values
    # Antialiasing reaches past a triangle's sharp corner, so the border may be tinted, but never half covered.
    assert (border - background).norm(dim=-1).max() < 0.5 * (clip - background).norm(dim=-1).max()
    assert all(len(frame.flatten(0, 1).unique(dim=0)) > 1 for frame in clip)
