"""The bridge to the official VBench: called as it wants to be called, resumable, and refused before work is done.

Against a stand-in with the official interface; where the official package can be found, its interface is compared.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_clips import moving_square
from processes import Finished, run_s2q
from vbench_stand_in import DIMENSIONS, PROMPTS, calls, install

from s2q.evaluation import vbench_runner
from s2q.evaluation.vbench import COLUMNS, SUITES, VBenchError, find_official, judge, read_prompts, video_name
from s2q.evaluation.video import read_clip, write_mp4
from s2q.run import Quantized

SIZE = ("--steps", "2", "--height", "16", "--width", "16", "--num-frames", "5", "--device", "cpu", "--clips", "1")
ASKED = [prompt for prompt, dimensions in PROMPTS.items() if set(dimensions) & set(SUITES)]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return install(tmp_path / "environment")


def fill(folder: Path, prompts: list[str]) -> Path:
    folder.mkdir(parents=True)
    for index, prompt in enumerate(prompts):
        write_mp4(folder / video_name(prompt), moving_square(noise=10 * index), 8)
    return folder


def test_the_eight_columns_are_those_of_the_paper() -> None:
    assert list(COLUMNS.values()) == ["IQ", "AQ", "MS", "DD", "BC", "SuC", "ScC", "OC"]
    assert set(COLUMNS) == set(DIMENSIONS)


def test_what_is_installed_is_found_and_only_the_prompts_needed_are_taken(python: Path) -> None:
    official = find_official(str(python))
    assert official.version == "source checkout"
    assert official.info == python.parent / "vbench" / "VBench_full_info.json"
    assert list(official.prompts) == ASKED == list(PROMPTS)[:3]


def test_a_relative_path_and_a_linked_python_are_the_same_environment(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to(python)
    for path in ("environment/python", "./linked"):
        official = find_official(path)
        assert official.python == str(tmp_path / path.removeprefix("./"))
        assert official.info.parent == python.parent / "vbench"


def test_scores_are_times_100_and_of_the_right_videos(python: Path, tmp_path: Path) -> None:
    official = find_official(str(python))
    videos = fill(tmp_path / "videos", ASKED)
    told: list[str] = []
    scores = judge(official, videos, tmp_path / "results", tmp_path / "log", told.append)
    assert list(scores) == told == list(COLUMNS)
    for dimension, score in scores.items():
        (prompt,) = (prompt for prompt, dimensions in PROMPTS.items() if dimension in dimensions)
        assert score == pytest.approx(100 * read_clip(videos / video_name(prompt)).mean() / 255, abs=0.5)
    assert "required video is not found" in (tmp_path / "log").read_text()
    assert len(set(np.round(list(scores.values()), 6))) == 3


def test_a_dimension_that_failed_is_named_and_only_it_is_done_again(python: Path, tmp_path: Path) -> None:
    official = find_official(str(python))
    videos = fill(tmp_path / "videos", ASKED)
    block = python.parent / "vbench" / "fail-scene"
    block.touch()
    with pytest.raises(VBenchError, match=r"no score for scene \(scene: FileNotFoundError: no weights of scene here"):
        judge(official, videos, tmp_path / "results", tmp_path / "log")
    block.unlink()
    (tmp_path / "results" / "dynamic_degree_eval_results.json").write_text('{"dynamic_degree": [0.')  # cut short
    before = len(calls(python))
    told: list[str] = []
    assert list(judge(official, videos, tmp_path / "results", tmp_path / "log", told.append)) == list(COLUMNS)
    assert calls(python)[before:] == ["dynamic_degree", "scene"]
    assert sorted(told) == sorted(COLUMNS)


def test_a_python_that_is_none_or_lacks_vbench_is_refused(python: Path, tmp_path: Path) -> None:
    with pytest.raises(VBenchError, match="cannot be run"):
        find_official(str(tmp_path / "no-python"))
    with pytest.raises(VBenchError, match="cannot be run"):
        find_official(str(tmp_path))
    if importlib.util.find_spec("vbench") is None:
        with pytest.raises(VBenchError, match=r"no working vbench \(ModuleNotFoundError.*pip install vbench"):
            find_official(sys.executable)
    (python.parent / "vbench" / "scene.py").write_text("import no_such_library")
    with pytest.raises(
        VBenchError, match=r"no working vbench \(ModuleNotFoundError: No module named 'no_such_library'\)"
    ):
        find_official(str(python))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "not VBench's list"),
        ('{"a": 1}', "not VBench's list"),
        ('[{"prompt_en": "alley", "dimension": ["scene"]}]', "lists no prompt for imaging_quality"),
        (json.dumps([{"prompt_en": "a/b", "dimension": list(COLUMNS)}]), "cannot be file names"),
        (json.dumps([{"prompt_en": "a" * 240, "dimension": list(COLUMNS)}]), "cannot be file names"),
    ],
)
def test_a_list_of_prompts_in_another_format_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(content)
    with pytest.raises(VBenchError, match=said):
        read_prompts(tmp_path / "info.json")


@pytest.fixture
def quantized_folder(quantized: Callable[..., Quantized]) -> Path:
    return quantized("rtn", "W4A6").folder


def evaluate(tiny_pipeline: Path, folder: Path, tmp_path: Path, *more: str | Path) -> Finished:
    arguments = ["evaluate", tiny_pipeline, "--transformer", folder, "-o", tmp_path / "out", *SIZE, *more]
    return run_s2q(arguments, tmp_path / "logs")


def test_evaluate_scores_both_transformers_and_goes_on_where_it_stopped(
    tiny_pipeline: Path, quantized_folder: Path, python: Path, tmp_path: Path
) -> None:
    (python.parent / "vbench" / "fail-overall_consistency").touch()
    finished = evaluate(tiny_pipeline, quantized_folder, tmp_path, "--vbench", python)
    assert finished.status == 2
    assert "no score for overall_consistency" in finished.err.splitlines()[-1]
    out = tmp_path / "out"
    assert json.loads((out / "report.json").read_text())["vbench"] is None  # the report stands without it
    made = {path: path.stat().st_mtime_ns for path in out.rglob("videos/*")}
    assert {path.name for path in made} == {video_name(prompt) for prompt in ASKED}

    (python.parent / "vbench" / "fail-overall_consistency").unlink()
    before = len(calls(python))
    finished = evaluate(tiny_pipeline, quantized_folder, tmp_path, "--vbench", python)
    assert finished.status == 0, finished.err
    assert calls(python)[before:] == ["overall_consistency", *COLUMNS]
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    report = json.loads((out / "report.json").read_text())
    vbench = report["vbench"]
    assert (vbench["version"], vbench["videos"], vbench["fps"]) == ("source checkout", 3, 8.0)
    assert list(vbench["scores"]) == ["float", "quantized"]
    for side, scores in vbench["scores"].items():
        assert list(scores) == list(COLUMNS)
        circle = read_clip(out / "vbench" / side / "videos" / "circle-0.mp4")
        assert circle.shape[1:] == (16, 16, 3)
        assert scores["scene"] == pytest.approx(100 * circle.mean() / 255, abs=0.5)
    assert vbench["scores"]["float"] != vbench["scores"]["quantized"]
    assert json.loads((out / "metrics.json").read_text())["vbench"] == vbench
    page = (out / "report.html").read_text()
    assert all(f">{column}</th>" in page for column in COLUMNS.values())

    before = len(calls(python))  # everything is there: nothing is made or scored again
    finished = evaluate(tiny_pipeline, quantized_folder, tmp_path, "--vbench", python, "--vbench-quantized-only")
    assert finished.status == 0, finished.err
    assert len(calls(python)) == before
    only = json.loads((out / "report.json").read_text())["vbench"]["scores"]
    assert only == {"quantized": vbench["scores"]["quantized"]}


def test_evaluate_refuses_before_anything_is_made(tiny_pipeline: Path, quantized_folder: Path, tmp_path: Path) -> None:
    for more, said in (
        (["--vbench", tmp_path / "none"], "cannot be run"),
        (["--vbench-quantized-only"], "without --vbench"),
        (["--clip", tiny_pipeline / "transformer"], "holds"),
        (["--dino", tmp_path / "none"], "is not a folder"),
        (["--aesthetic", tmp_path / "none"], "--aesthetic-clip"),
    ):
        finished = evaluate(tiny_pipeline, quantized_folder, tmp_path, *more)
        assert finished.status == 2
        assert said in finished.err
        assert len(finished.err.rstrip("\n").splitlines()) == 1, finished.err
        assert not (tmp_path / "out").exists()


def signature(source: str, name: str) -> list[tuple[str, str | None]]:
    """(argument, default) of a method of class VBench, read without importing the module."""
    (kind,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "VBench")
    (method,) = (node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == name)
    arguments = method.args.args
    defaults = [None] * (len(arguments) - len(method.args.defaults)) + [ast.unparse(d) for d in method.args.defaults]
    return [(argument.arg, default) for argument, default in zip(arguments, defaults, strict=True)]


@pytest.fixture
def official_python() -> str:
    """The Python of a real VBench environment, where the tester has one."""
    if "S2Q_VBENCH_PYTHON" not in os.environ:
        pytest.skip("S2Q_VBENCH_PYTHON does not name the Python of an environment with the official vbench")
    return os.environ["S2Q_VBENCH_PYTHON"]


def test_the_official_package_takes_our_videos(official_python: str, tmp_path: Path) -> None:
    """With the one dimension of it that needs no weights; it is none of the eight."""
    info = find_official(official_python).info
    prompt = next(e["prompt_en"] for e in json.loads(info.read_text()) if e["dimension"] == ["temporal_flickering"])
    videos = fill(tmp_path / "videos", [prompt])
    command = [official_python, "-c", inspect.getsource(vbench_runner), "judge", info, videos, tmp_path / "results"]
    said = subprocess.run([*command, "temporal_flickering"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "s2q: judged temporal_flickering"
    (results,) = (tmp_path / "results").glob("*_eval_results.json")
    assert results.name == "temporal_flickering_eval_results.json"
    score, (video,) = json.loads(results.read_text())["temporal_flickering"]
    clip = read_clip(videos / video_name(prompt)).astype(float)
    assert score == pytest.approx((255 - np.abs(np.diff(clip, axis=0)).mean()) / 255, abs=2e-3)
    assert video["video_path"].endswith(video_name(prompt))


def test_the_stand_in_has_the_official_interface(python: Path, official_python: str) -> None:
    official, stand_in = find_official(official_python).info.parent, python.parent / "vbench"
    for method in ("__init__", "evaluate"):
        theirs, ours = (signature((folder / "__init__.py").read_text(), method) for folder in (official, stand_in))
        assert theirs == ours
    for dimension in DIMENSIONS:
        assert f"def compute_{dimension}(json_dir, device, " in (official / f"{dimension}.py").read_text()
    prompts = read_prompts(official / "VBench_full_info.json")
    assert len(prompts) == len(set(prompts)) == 251
    shutil.copy(official / "VBench_full_info.json", stand_in)
    assert len(find_official(str(python)).prompts) == 251
