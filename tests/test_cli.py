"""The command line as users meet it: mistakes are one line and change nothing, results are files with known keys."""

import json
from pathlib import Path

import pytest
from processes import Finished, run_s2q
from tiny import CHEAP, PROMPTS, without_weights

SIZE = ("--steps", "2", "--height", "16", "--width", "16", "--num-frames", "5", "--device", "cpu")
SETS = tuple(word for change in CHEAP for word in ("--set", change))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# two prompts\n\n" + "\n".join(PROMPTS) + "\n")
    return path


@pytest.fixture(scope="module")
def result(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `s2q run`: out/ and json.json."""
    folder = tmp_path_factory.mktemp("result")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    options = ["--prompts", folder / "prompts.txt", *SETS, *SIZE, "--clips", "2", "--json", folder / "run.json"]
    finished = run_s2q(["run", tiny_pipeline, "-o", folder / "out", *options], folder / "logs")
    assert finished.status == 0, finished.err
    return folder


def one_line_and_nothing_else(finished: Finished, said: str) -> None:
    """Exit status 2 and a single line that says what is wrong."""
    assert finished.status == 2, finished.err
    assert "Traceback" not in finished.err
    assert finished.err.startswith("s2q: ")
    assert len(finished.err.rstrip("\n").splitlines()) == 1, finished.err
    assert said in finished.err
    assert finished.out == ""


MISTAKES = {
    "bits misspelt": (["--bits", "4A6"], "W4A6"),
    "bits not offered": (["--bits", "W1A6"], "out of range"),
    "bits of activations not offered": (["--bits", "W4A3"], "out of range"),
    "recipe unknown": (["--recipe", "awq"], "s2q_vdit"),
    "field unknown": (["--set", "optim.epoch=3"], "optim.epoch"),
    "field's value not allowed": (["--set", "optim.epochs=-1"], "epochs"),
    "assignment without a value": (["--set", "optim.epochs"], "FIELD=VALUE"),
    "dtype unknown": (["--dtype", "int8"], "float32"),
    "dtype is no dtype": (["--dtype", "nn"], "float32"),
    "device unknown": (["--device", "gpu"], "device"),
    "too few prompts": (["--set", "sampler.prompts=3"], "prompts"),
    "too few samples": (["--set", "sampler.count=99"], "99"),
    "height not divisible by 8": (["--height", "17"], "17"),
}


@pytest.mark.parametrize("command", ["quantize", "run"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_option_is_one_line_and_leaves_no_files(
    mistake: str, command: str, tiny_pipeline: Path, prompts: Path, tmp_path: Path
) -> None:
    options, said = MISTAKES[mistake]
    folder = tmp_path / "results"
    folder.mkdir()
    arguments = [command, tiny_pipeline, "-o", folder / "out", "--prompts", prompts, *SETS, *SIZE, *options]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), said)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\n \n# only a remark\n", b"\xff\xfe\x00"])
@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_a_prompt_file_without_prompts_is_refused(
    command: str, content: bytes, tiny_pipeline: Path, result: Path, tmp_path: Path
) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    more = ["--transformer", result / "out" / "transformer"] if command == "evaluate" else []
    arguments = [command, tiny_pipeline, "-o", tmp_path / "out", "--prompts", path, *more, *SIZE]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), "empty.txt")
    assert not (tmp_path / "out").exists()


def test_a_prompt_file_that_is_missing_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = ["quantize", tiny_pipeline, "-o", tmp_path / "out", "--prompts", tmp_path / "none.txt"]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), "none.txt")


@pytest.mark.parametrize("command", ["plan", "quantize", "run", "generate", "evaluate"])
def test_a_pipeline_that_is_missing_is_refused(command: str, tmp_path: Path, result: Path) -> None:
    more = {
        "plan": [],
        "generate": ["-o", tmp_path / "out.mp4", "--prompt", "a red square"],
        "evaluate": ["-o", tmp_path / "out", "--transformer", result / "out" / "transformer"],
    }.get(command, ["-o", tmp_path / "out"])
    finished = run_s2q([command, tmp_path / "none", *more], tmp_path / "logs")
    one_line_and_nothing_else(finished, "is not a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.parametrize("command", ["quantize", "run"])
def test_an_output_that_holds_something_else_is_refused_and_untouched(
    command: str, tiny_pipeline: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    foreign = out if command == "quantize" else out / "transformer"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("years of work")
    arguments = [command, tiny_pipeline, "-o", out, "--prompts", prompts, *SETS, *SIZE]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), "something else")
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_an_output_of_other_settings_is_refused_and_untouched(
    tiny_pipeline: Path, result: Path, tmp_path: Path
) -> None:
    before = (result / "out" / "transformer" / "config.json").read_bytes()
    options = ["--prompts", result / "prompts.txt", *SETS, *SIZE, "--bits", "W8A8"]
    finished = run_s2q(["run", tiny_pipeline, "-o", result / "out", *options], tmp_path / "logs")
    one_line_and_nothing_else(finished, "another")
    assert (result / "out" / "transformer" / "config.json").read_bytes() == before


def test_an_output_that_is_a_file_is_refused_and_untouched(tiny_pipeline: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    arguments = ["quantize", tiny_pipeline, "-o", tmp_path / "out", "--prompts", prompts, *SETS, *SIZE]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), "out")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("command", ["generate", "evaluate"])
@pytest.mark.parametrize("kind", ["missing", "empty", "pipeline instead of transformer"])
def test_a_quantized_transformer_that_is_none_is_refused(
    kind: str, command: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    folder = tiny_pipeline if kind.startswith("pipeline") else tmp_path / "quantized"
    if kind == "empty":
        folder.mkdir()
    more = (
        ["--prompt", "a red square", "-o", tmp_path / "out.mp4"] if command == "generate" else ["-o", tmp_path / "out"]
    )
    finished = run_s2q([command, tiny_pipeline, "--transformer", folder, *more, *SIZE], tmp_path / "logs")
    one_line_and_nothing_else(finished, "is not a transformer folder")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(("option", "said"), [(["--prompt", " "], "empty"), (["-o", "clip.gif"], ".mp4")])
def test_a_video_that_cannot_be_made_is_refused(
    option: list[str], said: str, tiny_pipeline: Path, tmp_path: Path
) -> None:
    arguments = ["generate", tiny_pipeline, "--prompt", "a red square", "-o", tmp_path / "out.mp4", *SIZE, *option]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), said)


def test_report_has_the_keys_that_scripts_rely_on(result: Path) -> None:
    report = json.loads((result / "out" / "report.json").read_text())
    assert report.keys() >= {"recipe", "bits", "seed", "storage", "fidelity", "readback", "seconds"}
    assert (report["recipe"], report["bits"], report["seed"]) == ("s2q_plus", "W4A8", 0)
    assert report["storage"].keys() >= {"float_bytes", "quantized_bytes", "bits_per_block_weight"}
    assert report["storage"]["bits_per_block_weight"] == 4
    fidelity = {"psnr_db", "ssim", "ms_ssim", "latent_relative_mse", "motion_ratio", "flicker_ratio", "clips"}
    assert report["fidelity"].keys() >= fidelity
    assert report["fidelity"]["latent_error_middle"] is None  # of two steps one is early and one late
    assert 0 < report["fidelity"]["latent_error_early"] < report["fidelity"]["latent_error_late"]
    assert report["appearance"].keys() == {"sharpness", "contrast", "colourfulness", "noise"}
    for name, row in report["appearance"].items():
        looks = [[clip["appearance"][side][name] for side in ("float", "quantized")] for clip in report["clips"]]
        assert row["difference"] == pytest.approx(sum(after - before for before, after in looks) / 2)
    assert report["learned"] is report["vbench"] is None
    assert (report["fidelity"]["ms_ssim_scales"], report["fidelity"]["ms_ssim"]) == (1, report["fidelity"]["ssim"])
    assert report["fidelity"]["clips"] == 2
    assert report["readback"] is None
    stages = {"trajectories", "selection", "token_weights", "calibration", "packing", "evaluation"}
    assert report["seconds"].keys() >= stages
    # The default recipe weights no tokens.
    assert all((report["seconds"][stage] > 0) == (stage != "token_weights") for stage in stages)
    assert json.loads((result / "run.json").read_text()) == report


def test_report_counts_the_bytes_that_are_really_on_disk(result: Path, tiny_pipeline: Path) -> None:
    storage = json.loads((result / "out" / "report.json").read_text())["storage"]
    for folder, claimed in (
        (tiny_pipeline / "transformer", storage["float_bytes"]),
        (result / "out" / "transformer", storage["quantized_bytes"]),
    ):
        # A safetensors file is its tensors behind a header whose length stands in the first eight bytes.
        data = [path.read_bytes() for path in folder.glob("*.safetensors")]
        assert claimed == sum(len(d) - 8 - int.from_bytes(d[:8], "little") for d in data)
    assert storage["float_bytes"] == sum(before for before, _ in storage["parts"].values())
    assert storage["quantized_bytes"] == sum(after for _, after in storage["parts"].values())


def test_run_leaves_report_and_clips(result: Path) -> None:
    out = result / "out"
    assert (out / "report.html").stat().st_size > 1000
    assert (out / "metrics.json").is_file()
    clips = {path.name for path in (out / "clips").glob("*.mp4")}
    assert clips == {f"clip-000{index}-{kind}.mp4" for index in range(2) for kind in ("float", "quantized")}


def test_plan_says_in_json_what_quantizing_then_does(result: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    finished = run_s2q(["plan", tiny_pipeline, *SIZE, "--layers", "--json", tmp_path / "plan.json"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert planned.keys() >= {"model", "recipe", "bits", "targets", "kept", "seconds", "memory_bytes", "disk_bytes"}
    report = json.loads((result / "out" / "report.json").read_text())
    for key in ("float_bytes", "quantized_bytes", "bits_per_block_weight"):
        assert planned[key] == report["storage"][key]
    config = json.loads((result / "out" / "transformer" / "config.json").read_text())
    schemes = config["quantization_config"]["schemes"]
    assert set(planned["targets"]) == {name for scheme in schemes for name in scheme["targets"]}
    assert not set(planned["targets"]) & set(planned["kept"])
    reasons = [f"  keep     {name}: {reason}" for name, reason in planned["kept"].items()]
    assert set(reasons) <= set(finished.out.splitlines()), "a line each, however narrow the terminal"
    assert "main memory of cpu, about" in finished.out
    assert set(planned["companion_bytes"]) == {"text_encoder", "vae"}


def test_quantize_removes_its_work_folder_unless_told_to_keep_it(
    tiny_pipeline: Path, prompts: Path, tmp_path: Path
) -> None:
    arguments = ["quantize", tiny_pipeline, "--prompts", prompts, *SETS, *SIZE]
    for name, more in (("one", []), ("two", ["--keep-work"])):
        json_file = tmp_path / f"{name}.json"
        finished = run_s2q([*arguments, "-o", tmp_path / name, "--json", json_file, *more], tmp_path / "logs")
        assert finished.status == 0, finished.err
        summary = json.loads(json_file.read_text())
        assert summary.keys() >= {"recipe", "bits", "seed", "output", "storage", "seconds"}
    assert not (tmp_path / "one.work").exists()
    assert (tmp_path / "two.work").is_dir()


def test_generate_writes_a_video_with_either_transformer(tiny_pipeline: Path, result: Path, tmp_path: Path) -> None:
    for name, more in (("float", []), ("quantized", ["--transformer", result / "out" / "transformer"])):
        out, json_file = tmp_path / "new" / f"{name}.mp4", tmp_path / f"{name}.json"
        arguments = ["generate", tiny_pipeline, "--prompt", PROMPTS[0], "-o", out, *SIZE, "--json", json_file, *more]
        finished = run_s2q(arguments, tmp_path / "logs")
        assert finished.status == 0, finished.err
        assert b"ftyp" in out.read_bytes()[:12]
        assert json.loads(json_file.read_text())["shape"][1:] == [16, 16, 3]


def test_evaluate_writes_the_same_figures_as_run(tiny_pipeline: Path, result: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", tiny_pipeline, "--transformer", result / "out" / "transformer", "-o", tmp_path / "out"]
    finished = run_s2q([*arguments, "--clips", "2", *SIZE, "--json", tmp_path / "e.json"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    report = json.loads((result / "out" / "report.json").read_text())
    assert json.loads((tmp_path / "e.json").read_text())["fidelity"] == report["fidelity"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_int8_attention_is_used_and_said_in_what_is_written(tiny_pipeline: Path, result: Path, tmp_path: Path) -> None:
    transformer = result / "out" / "transformer"
    before = sorted(path.read_bytes() for path in transformer.iterdir())
    arguments = ["evaluate", tiny_pipeline, "--transformer", transformer, "-o", tmp_path / "out", "--clips", "2", *SIZE]
    finished = run_s2q([*arguments, "--attention", "int8"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    plain = json.loads((result / "out" / "report.json").read_text())
    assert plain["attention"] == {"kind": "float"}
    assert report["attention"]["kind"] == "int8"
    assert report["attention"]["declined"] == {}
    assert report["fidelity"]["latent_relative_mse"] != plain["fidelity"]["latent_relative_mse"]
    assert any("int8 attention" in note for note in report["notes"])
    assert sorted(path.read_bytes() for path in transformer.iterdir()) == before
    other = run_s2q(arguments, tmp_path / "logs-other")
    assert other.status == 2, "clips of another attention are not taken for these"


def test_generate_in_int8_says_so_and_refuses_what_it_does_not_know(tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = ["generate", tiny_pipeline, "--prompt", PROMPTS[0], "-o", tmp_path / "a.mp4", *SIZE]
    finished = run_s2q([*arguments, "--attention", "int8", "--json", tmp_path / "a.json"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    assert json.loads((tmp_path / "a.json").read_text())["attention"] == "int8"
    one_line_and_nothing_else(run_s2q([*arguments, "--attention", "int4"], tmp_path / "logs-int4"), "float and int8")


def test_compare_writes_table_and_results_and_goes_on(tiny_pipeline: Path, prompts: Path, tmp_path: Path) -> None:
    command = ["compare", tiny_pipeline, "--recipe", "rtn", "--recipe", "rtn:linear.act_bits=8", "--seeds", "1"]
    command += ["--clips", "2", "--prompts", prompts, *SIZE, "-o", tmp_path / "out"]
    done = run_s2q(command, tmp_path / "logs")
    assert done.status == 0, done.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["variant"] for row in summary["rows"]] == ["rtn", "rtn:linear.act_bits=8"]
    assert summary["command"].startswith("s2q compare")
    assert "rtn:linear.act_bits=8" in (tmp_path / "out" / "TABLE.md").read_text()
    assert "1/2 rtn" in done.out
    again = run_s2q(command, tmp_path / "logs-again")
    assert again.status == 0, again.err
    assert "1/2 rtn" not in again.out, "cells that are done are not made again"


def test_compare_refuses_a_recipe_before_anything_is_loaded(tiny_pipeline: Path, tmp_path: Path) -> None:
    finished = run_s2q(["compare", tiny_pipeline, "--recipe", "awq", "-o", tmp_path / "out"], tmp_path / "logs")
    one_line_and_nothing_else(finished, "awq")
    assert not (tmp_path / "out").exists()


def test_plan_wants_configurations_alone_and_says_what_it_assumes(tiny_pipeline: Path, tmp_path: Path) -> None:
    bare = without_weights(tiny_pipeline, tmp_path / "bare")
    finished = run_s2q(["plan", bare, *SIZE, "--json", tmp_path / "plan.json"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert planned["float_bytes_assumed"] is True
    assert "2 bytes a weight assumed" in " ".join(finished.out.replace("│", " ").split())
    arguments = ["generate", bare, "--prompt", "a", "-o", tmp_path / "a.mp4"]
    one_line_and_nothing_else(run_s2q(arguments, tmp_path / "logs"), "no weights")
