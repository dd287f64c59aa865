import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from s2q.demo import scenes
from s2q.demo.readback import Reading, read, scores
from s2q.demo.scenes import Scene

ATTRIBUTES = ("background", "colour", "motion", "shape")


@pytest.fixture(scope="module")
def rendered() -> tuple[torch.Tensor, list[str]]:
    pool = scenes.all_scenes()
    return scenes.render_batch(pool, torch.Generator().manual_seed(11)), [scene.caption for scene in pool]


def test_rendered_clips_read_back(rendered: tuple[torch.Tensor, list[str]]) -> None:
    assert min(scores(*rendered).values()) >= 0.99


def test_blur_does_not_hurt(rendered: tuple[torch.Tensor, list[str]]) -> None:
    clips, prompts = rendered
    planes = clips.permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None].float()
    blurred = functional.avg_pool2d(functional.pad(planes, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = blurred.view(len(clips), scenes.FRAMES, 3, scenes.SIZE, scenes.SIZE).permute(0, 1, 3, 4, 2)
    assert min(scores(blurred.round().to(torch.uint8), prompts).values()) >= 0.98


def test_noise_does_not_hurt(rendered: tuple[torch.Tensor, list[str]]) -> None:
    clips, prompts = rendered
    noise = 8 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    assert min(scores((clips + noise).clamp(0, 255).to(torch.uint8), prompts).values()) >= 0.98


@given(st.sampled_from(scenes.all_scenes()), st.integers(0, 2**32 - 1), st.data())
def test_a_wrong_word_costs_exactly_its_attribute(scene: Scene, seed: int, data: st.DataObject) -> None:
    attribute = data.draw(st.sampled_from(ATTRIBUTES))
    known = {
        "background": scenes.BACKGROUNDS,
        "colour": scenes.COLOURS,
        "motion": scenes.MOTIONS,
        "shape": scenes.SHAPES,
    }[attribute]
    other = data.draw(st.sampled_from([value for value in known if value != getattr(scene, attribute)]))
    clip = scenes.render(scene, torch.Generator().manual_seed(seed))
    reading = read(clip)
    matches = reading.matches(dataclasses.replace(scene, **{attribute: other}))
    assert not matches[attribute]
    assert all(matches[name] for name in ATTRIBUTES if name != attribute and getattr(reading, name) is not None)


def test_reversed_clips_read_as_the_opposite_motion(rendered: tuple[torch.Tensor, list[str]]) -> None:
    opposite = {
        "moves left": "moves right",
        "moves right": "moves left",
        "moves up": "moves down",
        "moves down": "moves up",
        "grows": "shrinks",
        "shrinks": "grows",
    }
    clips, prompts = rendered
    turned = [dataclasses.replace(scene, motion=opposite[scene.motion]) for scene in map(Scene.parse, prompts)]
    assert scores(clips.flip(1), [scene.caption for scene in turned])["motion"] >= 0.99


def test_a_still_clip_has_no_motion() -> None:
    clip = scenes.render(scenes.all_scenes()[0], torch.Generator().manual_seed(0))
    assert read(clip[:1].expand_as(clip)).motion is None


def test_an_object_that_jumps_about_has_no_motion() -> None:
    scene = Scene("square", "red", "grey", "moves left")
    clip = scenes.render(scene, torch.Generator().manual_seed(0))
    assert read(clip[[0, 8, 1, 7, 2, 6, 3, 5, 4]]).motion is None


def test_two_objects_are_no_shape() -> None:
    clip = scenes.render(Scene("square", "red", "black", "grows"), torch.Generator().manual_seed(0))
    first = torch.full_like(clip, 12)
    first[:, 3:13, 3:13] = torch.tensor(scenes.COLOURS["red"], dtype=torch.uint8)
    first[:, 19:29, 19:29] = torch.tensor(scenes.COLOURS["red"], dtype=torch.uint8)
    assert read(first).shape is None


@pytest.mark.parametrize("level", [0, 12, 125, 240])
def test_an_empty_clip_shows_only_background(level: int) -> None:
    reading = read(torch.full((scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3), level, dtype=torch.uint8))
    assert reading.shape is reading.colour is reading.motion is None


def test_noise_reads_as_nothing() -> None:
    noise = torch.randint(
        0, 256, (scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3), generator=torch.Generator().manual_seed(0)
    )
    reading = read(noise.to(torch.uint8))
    assert reading == Reading(shape=None, colour=reading.colour, background=reading.background, motion=None)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        read(torch.zeros(scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3))
    with pytest.raises(ValueError, match="as many clips as prompts"):
        scores(torch.zeros(2, scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3, dtype=torch.uint8), ["one"])
