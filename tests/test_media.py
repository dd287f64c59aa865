"""Files beside a prompt: read as given, and everything wrong with them said at once, before any work."""

import json
import logging
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_media import scene, write_image, write_video
from tiny_pipelines import pipeline_class

from s2q.media import Prompt, described, media_of, read_frames, read_image, read_media
from s2q.models.inputs import check_prompts, inputs_of
from s2q.prompts import CALIBRATION, read_prompts

I2V = diffusers.CogVideoXImageToVideoPipeline


def write(path: Path, *lines: str | dict) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_prompt_with_files_is_its_words_and_differs_by_what_is_in_the_files(tmp_path: Path) -> None:
    one, other = write_image(tmp_path / "a.png", 0), write_image(tmp_path / "b.png", 1)
    prompt = Prompt("a gull", image=one)
    assert prompt == "a gull"
    assert json.dumps([prompt]) == '["a gull"]'
    assert described("a gull") == "a gull"
    assert described(prompt) == described(Prompt("a gull", image=str(one))) != described(Prompt("a gull", image=other))


def test_paths_start_at_the_folder_of_the_file_and_plain_lines_stay_prompts(tmp_path: Path) -> None:
    lines = "a gull", {"prompt": " a fox ", "image": "in/a.png", "reference_images": ["b.png", "/c.png"]}, "# remark"
    plain, fox = read_prompts(write(tmp_path / "prompts.txt", *lines))
    assert (plain, media_of(plain), fox) == ("a gull", {}, "a fox")
    expected = {"image": (tmp_path / "in/a.png",), "reference_images": (tmp_path / "b.png", Path("/c.png"))}
    assert media_of(fox) == expected


def test_all_lines_that_are_no_prompts_are_named(tmp_path: Path) -> None:
    lines = (
        '{"prompt": ',
        {"image": "a.png"},
        {"prompt": "a", "picture": "a.png"},
        {"prompt": "a", "image": 3},
        {"prompt": "a", "image": []},
    )
    with pytest.raises(ValueError, match="not valid JSON") as caught:
        read_prompts(write(tmp_path / "prompts.txt", *lines))
    for number, said in enumerate(
        ("not valid JSON", 'no "prompt"', "'picture' is not known", "image must be", "image must be"), 1
    ):
        assert f"line {number}: {said}" in str(caught.value)


def test_a_video_is_read_from_a_file_and_from_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "notes.txt").write_text("no frame")
    for number, image in reversed(list(enumerate(scene(0)[:3]))):
        image.save(frames / f"{number:02d}.png")
    assert [list(image.getdata()) for image in read_frames(frames)] == [list(image.getdata()) for image in scene(0)[:3]]
    coded = read_frames(write_video(tmp_path / "a.mp4", 3))
    assert len(coded) == 3
    assert np.abs(np.asarray(coded[0], dtype=int) - np.asarray(scene(0)[0], dtype=int)).mean() < 8


def test_an_image_with_transparency_or_grey_alone_becomes_rgb(tmp_path: Path) -> None:
    for mode in ("RGBA", "L", "P"):
        Image.new(mode, (8, 8)).save(tmp_path / f"{mode}.png")
        assert read_image(tmp_path / f"{mode}.png").mode == "RGB"


def test_an_image_pipeline_without_images_says_how_to_give_them() -> None:
    said = r'CogVideoXImageToVideoPipeline wants image .*"image": "dog.png".* --input image=dog.png'
    with pytest.raises(ValueError, match=said):
        check_prompts(I2V, CALIBRATION)


def test_more_prompts_than_images_are_named_by_number(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"takes image; prompt 2 has no image; prompt 3 has no image$"):
        check_prompts(I2V, [Prompt("a", image=image), "b", "c"])


def test_a_text_pipeline_that_is_given_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CogVideoXPipeline takes words alone; prompt 1 has image"):
        check_prompts(diffusers.CogVideoXPipeline, [Prompt("a", image=write_image(tmp_path / "a.png"))])


def test_all_files_that_cannot_be_read_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(write_image(tmp_path / "a.png").read_bytes()[:60])
    names = ("none.png", "text.png", "cut.png", ".")
    with pytest.raises(ValueError, match="is missing") as caught:
        check_prompts(I2V, [Prompt("a", image=tmp_path / name) for name in names])
    assert all(str(tmp_path / name) in str(caught.value) for name in names)


@pytest.mark.parametrize("name", ["none.mp4", "text.mp4", "empty"])
def test_a_video_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=name):
        read_frames(tmp_path / name)


def test_frames_of_different_sizes_are_no_video(tmp_path: Path) -> None:
    for size in (8, 16):
        Image.new("RGB", (size, 8)).save(tmp_path / f"{size}.png")
    with pytest.raises(ValueError, match="different sizes"):
        read_frames(tmp_path)


def test_a_face_is_read_by_name_and_in_order(tmp_path: Path) -> None:
    hidden = {f"id_vit_hidden.{number}": torch.full((1, 2, 3), float(number)) for number in range(11)}
    save_file(hidden | {"id_cond": torch.ones(1, 4), "id_conditions": torch.zeros(1)}, tmp_path / "face.safetensors")
    face = tmp_path / "face.safetensors"
    read = read_media(Prompt("a man smiles", id_cond=face, id_vit_hidden=face))
    assert torch.equal(read["id_cond"], torch.ones(1, 4))
    assert [float(tensor.mean()) for tensor in read["id_vit_hidden"]] == list(range(11))


def test_a_face_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    save_file({"id_cond.0": torch.ones(1), "id_cond.1": torch.ones(1)}, tmp_path / "two.safetensors")
    for name, said in (
        ("none.safetensors", "is missing"),
        ("text.safetensors", "cannot be read as safetensors"),
        ("other.safetensors", "has no tensor id_cond, nor id_cond.0: it has other"),
        ("two.safetensors", "holds 2 tensors id_cond"),
    ):
        with pytest.raises(ValueError, match=said):
            read_media(Prompt("a man smiles", id_cond=tmp_path / name))


def test_without_a_face_consisid_says_what_it_wants(tmp_path: Path) -> None:
    """diffusers has it where opencv is installed, and defaults of None for what it cannot do without."""
    pipeline = pipeline_class("ConsisIDPipeline")
    with pytest.raises(ValueError, match="prompt 1 has no id_cond; prompt 1 has no id_vit_hidden"):
        check_prompts(pipeline, [Prompt("a man smiles", image=write_image(tmp_path / "a.png"))], (32, 32))


def test_two_files_where_one_is_wanted_are_an_error(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="one file is wanted, got 2"):
        check_prompts(I2V, [Prompt("a", image=[image, image])])
    assert len(read_media(Prompt("a", reference_images=[image, image]))["reference_images"]) == 2


def test_an_image_of_another_shape_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = write_image(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        check_prompts(I2V, [Prompt("a", image=image)], (64, 64))
        assert not caplog.records
        check_prompts(I2V, [Prompt("a", image=image)], (64, 96))
    assert "32×32 and the video 96×64" in caplog.text


def test_a_square_face_is_not_said_to_be_stretched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {name: write_video(tmp_path / f"{name}.mp4", 2) for name in ("pose_video", "face_video")}
    prompt = Prompt("a", image=write_image(tmp_path / "a.png"), **files)
    with caplog.at_level(logging.WARNING):
        check_prompts(diffusers.WanAnimatePipeline, [prompt], (64, 96))
    assert "pose_video" in caplog.text
    assert "face_video" not in caplog.text


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("CogVideoXPipeline", ()),
        ("WanVACEPipeline", ()),
        ("WanImageToVideoPipeline", (("image",),)),
        ("LTXImageToVideoPipeline", (("image",),)),
        ("LTXConditionPipeline", (("image", "video"),)),
        ("CogVideoXVideoToVideoPipeline", (("video",),)),
        ("WanVideoToVideoPipeline", (("video",),)),
        ("CogVideoXFunControlPipeline", (("control_video",),)),
        ("EasyAnimateControlPipeline", (("control_video",),)),
        ("EasyAnimateInpaintPipeline", ()),
        ("Cosmos2VideoToWorldPipeline", (("image", "video"),)),
        ("Cosmos2_5_PredictBasePipeline", ()),
        ("WanAnimatePipeline", (("image",), ("pose_video",), ("face_video",))),
    ],
)
def test_what_a_pipeline_needs_is_read_from_its_signature(name: str, needed: tuple) -> None:
    assert inputs_of(getattr(diffusers, name)).needed == needed
