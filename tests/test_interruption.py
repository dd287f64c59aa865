"""A run that is killed, interrupted or repeated ends with the same bits as one that was left alone."""

import json
import signal
from pathlib import Path

import pytest
from processes import Finished, Strike, run_s2q
from tiny import CHEAP, PROMPTS, folder_bytes

# Where each stage puts what it has finished, in the order of the stages.
MOMENTS = {
    "settings": Strike("work/settings.json"),
    "trajectories": Strike("prompt-0001.safetensors"),
    "trajectories, between two": Strike("prompt-0000.safetensors", after=True),
    "selection": Strike("selection.json"),
    "token weights": Strike("step-0001.safetensors"),
    "calibration": Strike("block-0001.safetensors"),
    "calibration, between two": Strike("block-0000.safetensors", after=True),
    "packing, first file": Strike("config.json"),
    "packing, whole folder": Strike("out/transformer"),
    "packing, just done": Strike("out/transformer", after=True),
    "evaluation": Strike("clip-0000.safetensors"),
    "report": Strike("report.json"),
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def run(pipeline: Path, prompts: Path, folder: Path, strike: Strike | None = None, *more: str) -> Finished:
    """`s2q run` on the tiny pipeline into `folder`/out, by the recipe that goes through every stage."""
    sets = [word for change in CHEAP for word in ("--set", change)]
    sets += ["--recipe", "s2q_vdit"]
    size = ["--steps", "2", "--height", "16", "--width", "16", "--num-frames", "5", "--device", "cpu"]
    arguments = ["run", pipeline, "-o", folder / "out", "--prompts", prompts, *sets, *size, "--clips", "1", *more]
    return run_s2q(arguments, folder / "logs", strike)


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished = run(tiny_pipeline, prompts, folder)
    assert finished.status == 0, finished.err
    return folder / "out"


def same_result(out: Path, undisturbed: Path) -> None:
    """The transformer to the byte, and what the report says of quality."""
    assert folder_bytes(out / "transformer") == folder_bytes(undisturbed / "transformer")
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, undisturbed)]
    assert reports[0]["fidelity"] == reports[1]["fidelity"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_any_stage_the_same_command_ends_with_the_same_bits(
    moment: str, tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    killed = run(tiny_pipeline, prompts, tmp_path, MOMENTS[moment])
    assert killed.status == -signal.SIGKILL, "the moment was never reached"
    again = run(tiny_pipeline, prompts, tmp_path)
    assert again.status == 0, again.err
    same_result(tmp_path / "out", undisturbed)


def test_killed_in_every_stage_one_after_the_other_it_still_ends_with_the_same_bits(
    tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for moment in ("trajectories", "token weights", "calibration", "packing, whole folder", "evaluation"):
        killed = run(tiny_pipeline, prompts, tmp_path, MOMENTS[moment])
        assert killed.status == -signal.SIGKILL, moment
    assert run(tiny_pipeline, prompts, tmp_path).status == 0
    same_result(tmp_path / "out", undisturbed)


def test_same_command_in_another_folder_gives_the_same_bytes(
    tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert run(tiny_pipeline, prompts, tmp_path).status == 0
    same_result(tmp_path / "out", undisturbed)


def test_finished_work_is_not_done_again(tiny_pipeline: Path, prompts: Path, tmp_path: Path) -> None:
    run(tiny_pipeline, prompts, tmp_path, MOMENTS["report"])
    work = [*(tmp_path / "out" / "work").rglob("*.safetensors"), *(tmp_path / "out" / "clips").rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in work}
    assert len(before) == 2 + 2 + 2 + 1
    assert run(tiny_pipeline, prompts, tmp_path).status == 0
    assert {path: path.stat().st_mtime_ns for path in work} == before


def test_files_cut_short_by_a_crash_are_made_again(
    tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run(tiny_pipeline, prompts, tmp_path, MOMENTS["packing, whole folder"])
    for path in [*(tmp_path / "out" / "work").rglob("*.safetensors"), tmp_path / "out" / "work" / "selection.json"]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = run(tiny_pipeline, prompts, tmp_path)
    assert again.status == 0, again.err
    same_result(tmp_path / "out", undisturbed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_is_one_line_and_its_own_status(
    number: int, status: int, tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    stopped = run(tiny_pipeline, prompts, tmp_path, Strike("block-0001.safetensors", number))
    assert stopped.status == status
    assert "Traceback" not in stopped.err
    assert stopped.err.rstrip().splitlines()[-1].startswith("s2q: interrupted.")
    assert [path.name for path in tmp_path.rglob("*.part")] == []
    assert run(tiny_pipeline, prompts, tmp_path).status == 0
    same_result(tmp_path / "out", undisturbed)


def test_killed_runs_do_not_pile_up_half_written_files(tiny_pipeline: Path, prompts: Path, tmp_path: Path) -> None:
    for moment in ("trajectories", "calibration", "report"):
        run(tiny_pipeline, prompts, tmp_path, MOMENTS[moment])
    assert run(tiny_pipeline, prompts, tmp_path).status == 0
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_another_seed_gives_another_transformer(
    tiny_pipeline: Path, prompts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert run(tiny_pipeline, prompts, tmp_path, None, "--seed", "1").status == 0
    weights = "diffusion_pytorch_model.safetensors"
    ours, theirs = (folder_bytes(out / "transformer")[weights] for out in (tmp_path / "out", undisturbed))
    assert ours != theirs
