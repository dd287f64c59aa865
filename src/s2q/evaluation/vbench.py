"""The bridge to the official VBench (arXiv 2311.17982), which needs an environment of its own.

Its package pins libraries that exclude ours, so it is called in a process of the Python the user names. Prompts, file
names, models and scores are all the official package's; s2q only makes the videos and reads the results back.

Of its 16 dimensions these are the eight of arXiv 2508.04016 (table of CogVideoX and HunyuanVideo), under the columns
of that table, times 100 as printed there. They are scored on the three prompt lists that the official information
file gives them: overall_consistency, subject_consistency and scene, one video a prompt (VBench itself asks for five).
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2q.evaluation import vbench_runner

COLUMNS = {
    "imaging_quality": "IQ",
    "aesthetic_quality": "AQ",
    "motion_smoothness": "MS",
    "dynamic_degree": "DD",
    "background_consistency": "BC",
    "subject_consistency": "SuC",
    "scene": "ScC",
    "overall_consistency": "OC",
}
"""Dimension of VBench → column of the paper."""
SUITES = ("overall_consistency", "subject_consistency", "scene")
"""The prompts of these dimensions are those of all eight."""
INSTALL = "install the official package there (pip install vbench, see docs/measures.md)"


class VBenchError(ValueError):
    """The official VBench cannot be used or failed, with what was seen and what to do."""


@dataclass(frozen=True)
class Official:
    """An installed official VBench."""

    python: str
    """The interpreter in whose environment it is installed."""
    version: str
    info: Path
    """Its ``VBench_full_info.json``."""
    prompts: tuple[str, ...]
    """The prompts of :data:`SUITES` in the order of that file, each once."""


def find_official(python: str) -> Official:
    """Look into the environment of ``python``, importing all that judging will need.

    Raises:
        VBenchError: it does not run, has no working ``vbench``, or one whose information file is not as expected.
    """
    if os.sep in python:  # it is run in other folders; its links are kept, for a venv's Python is one
        python = os.path.abspath(python)
    with tempfile.TemporaryDirectory(prefix="s2q-vbench-") as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                _command(python, "probe", str(answer), *COLUMNS),
                cwd=folder, capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        except OSError as error:
            raise VBenchError(
                f"--vbench {python} cannot be run ({error.strerror}): name the Python of an environment with vbench"
            ) from error
        if done.returncode or not answer.is_file():
            raise VBenchError(f"--vbench {python} has no working vbench ({_last_line(done.stderr)}): {INSTALL}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    info = Path(found["info"])
    return Official(python, found["version"], info, read_prompts(info))


def read_prompts(info: Path) -> tuple[str, ...]:
    """The prompts of :data:`SUITES` in the official information file, in its order, each once.

    Raises:
        VBenchError: no such file, another format, no prompt of one of the suites, or one that can be no file name.
    """
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
        chosen = [entry for entry in entries if set(entry["dimension"]) & set(SUITES)]
        prompts = tuple(dict.fromkeys(entry["prompt_en"] for entry in chosen))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VBenchError(
            f"{info} is not VBench's list of prompts ({type(error).__name__}: {error}): {INSTALL}"
        ) from None
    if absent := [dimension for dimension in COLUMNS if not any(dimension in e["dimension"] for e in chosen)]:
        raise VBenchError(f"{info} lists no prompt for {', '.join(absent)}: {INSTALL}")
    if wrong := [prompt for prompt in prompts if "/" in prompt or len(video_name(prompt).encode()) > 230]:
        raise VBenchError(f"{info} has prompts that cannot be file names, such as {wrong[0]!r}: {INSTALL}")
    return prompts


def video_name(prompt: str) -> str:
    """The file of a prompt's first video, by the official naming."""
    return f"{prompt}-0.mp4"


def read_scores(results: Path) -> dict[str, float]:
    """What the official package has written so far: dimension → score times 100, in the order of :data:`COLUMNS`.

    A file that was cut short counts as absent.
    """
    scores = {}
    for dimension in COLUMNS:
        try:
            found = json.loads((results / f"{dimension}_eval_results.json").read_text(encoding="utf-8"))
            score = float(found[dimension][0])
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            continue
        if math.isfinite(score):
            scores[dimension] = 100 * score
    return scores


def judge(
    official: Official, videos: Path, results: Path, log: Path, advance: Callable[[str], None] = lambda dimension: None
) -> dict[str, float]:
    """Have the official package score a folder of videos; dimensions with a result are not scored again.

    Args:
        videos: holds one ``PROMPT-0.mp4`` for each of ``official.prompts`` and nothing else.
        results: where the official files go.
        log: everything the official package says.
        advance: called with each dimension that is done.

    Returns:
        dimension → score times 100, all eight.

    Raises:
        VBenchError: it failed; what it had scored is kept.
    """
    done = read_scores(results)
    for dimension in done:
        advance(dimension)
    missing = [dimension for dimension in COLUMNS if dimension not in done]
    if missing:
        results.mkdir(parents=True, exist_ok=True)
        folders = [str(official.info), str(videos.resolve()), str(results.resolve())]
        _stream(_command(official.python, "judge", *folders, *missing), results, log, advance)
        done = read_scores(results)
    if missing := [dimension for dimension in COLUMNS if dimension not in done]:
        said = log.read_text(encoding="utf-8", errors="replace")
        why = [line.removeprefix(vbench_runner.FAILED) for line in said.splitlines() if vbench_runner.FAILED in line]
        raise VBenchError(
            f"the official VBench gave no score for {', '.join(missing)} ({(why or [_last_line(said)])[0]}): "
            f"all it said is in {log}. "
            "The videos and its other scores are kept; mend it and repeat the command"
        )
    return done


def _stream(command: list[str], folder: Path, log: Path, advance: Callable[[str], None]) -> None:
    """Run a command in ``folder``, its output into ``log``, telling of every dimension as it is done."""
    with (
        open(log, "w", encoding="utf-8") as said,
        subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        try:
            for line in process.stdout:
                said.write(line)
                if line.startswith(vbench_runner.DONE):
                    advance(line.removeprefix(vbench_runner.DONE).strip())
        except BaseException:  # an interruption must not leave it running
            process.kill()
            raise


def _command(python: str, *arguments: str) -> list[str]:
    # The text, not the file: a script's folder comes first on the path, and this one has modules of common names.
    return [python, "-c", inspect.getsource(vbench_runner), *arguments]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
