"""The command line with an image pipeline: quantized and compared in one go, then a clip of one image."""

import json
from pathlib import Path

import pytest
from processes import run_s2q
from tiny import CHEAP, PROMPTS
from tiny_media import MEDIA_PIPELINES, with_media

from s2q.evaluation.video import read_clip
from s2q.media import media_of
from s2q.storage import read_json

SIZE = ("--steps", "3", "--height", "16", "--width", "16", "--num-frames", "5", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CogVideoX that begins with an image."""
    return MEDIA_PIPELINES["cogvideox-i2v"].save(tmp_path_factory.mktemp("made") / "i2v")


def file_of(path: Path, prompts: list[str]) -> Path:
    """A file of prompts with images, named as seen from it."""
    lines = [{"prompt": prompt, "image": media_of(prompt)["image"][0].name} for prompt in prompts]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_pipeline_of_images_runs_to_its_report_and_makes_a_clip(folder: Path, tmp_path: Path) -> None:
    prompts = file_of(tmp_path / "prompts.jsonl", with_media(PROMPTS, ("image",), tmp_path))
    sets = [word for change in CHEAP for word in ("--set", change)]
    out = tmp_path / "out"
    run = ["run", folder, "--prompts", prompts, *sets, *SIZE, "-o", out]
    finished = run_s2q(run, tmp_path / "logs")
    assert finished.status == 2
    assert "CogVideoXImageToVideoPipeline wants image" in " ".join(finished.err.split()), "to compare on"
    assert not out.exists()
    finished = run_s2q([*run, "--evaluation-prompts", prompts, "--clips", "1"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    assert 0 < read_json(out / "metrics.json")["fidelity"]["latent_relative_mse"] < 1
    assert (out / "report.html").is_file()
    clip = ["generate", folder, "--transformer", out / "transformer", "--prompt", PROMPTS[0], *SIZE]
    finished = run_s2q([*clip, "--image", tmp_path / "image-0.png", "-o", tmp_path / "a.mp4"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    assert read_clip(tmp_path / "a.mp4").std() > 0


def test_a_pipeline_of_videos_is_planned_by_their_length_and_reused_with_the_same_videos(tmp_path: Path) -> None:
    made = MEDIA_PIPELINES["cogvideox-v2v"]
    folder, logs = made.save(tmp_path / "v2v"), tmp_path / "logs"
    with_media(PROMPTS, ("video",), tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": prompt, "video": f"video-{number}.mp4"} for number, prompt in enumerate(PROMPTS)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    size = ("--steps", "4", "--height", "16", "--width", "16", "--device", "cpu")
    sets = [word for change in CHEAP for word in ("--set", change)]
    base = ["quantize", folder, *sets, *size]
    finished = run_s2q([*base, "--prompts", prompts, "--keep-work", "-o", tmp_path / "base"], logs)
    assert finished.status == 0, finished.err
    again = [*base, "--set", "optim.epochs=0", "--reuse", tmp_path / "base", "-o", tmp_path / "again"]
    finished = run_s2q(again, logs)
    assert finished.status == 2
    assert "give the same prompts with --prompts" in " ".join(finished.err.split())
    finished = run_s2q([*again, "--prompts", prompts], logs)
    assert finished.status == 0, finished.err
    assert "trajectories" in finished.out
    clip = ["generate", folder, "--transformer", tmp_path / "again", "--prompt", PROMPTS[0], "--attention", "int8"]
    finished = run_s2q([*clip, *size, "--input", f"video={tmp_path / 'video-0.mp4'}", "-o", tmp_path / "a.mp4"], logs)
    assert finished.status == 0, finished.err
    assert read_clip(tmp_path / "a.mp4").std() > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "wants image with each prompt"),
        (("--image", "none.png"), "none.png is missing"),
        (("--input", "picture=a.png"), "write NAME=FILE, NAME one of image, last_image"),
        (("--input", "image"), "write NAME=FILE"),
        (("--image", "none.png", "--input", "video=a.mp4"), "takes image; prompt 1 has video"),
    ],
)
def test_what_generate_is_given_is_looked_at_before_anything_is_loaded(
    given: tuple[str, ...], said: str, folder: Path, tmp_path: Path
) -> None:
    arguments = ["generate", folder, "--prompt", "a", *given, *SIZE, "-o", tmp_path / "a.mp4"]
    finished = run_s2q(arguments, tmp_path / "logs")
    assert finished.status == 2
    assert said in " ".join(finished.err.split())
