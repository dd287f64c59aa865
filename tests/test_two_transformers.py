"""Wan 2.2's two experts: each is calibrated on the steps that it serves, and both work together when loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from processes import run_s2q
from tiny import CHEAP, PROMPTS, cheap, folder_bytes
from tiny_families import FAMILIES, make_wan, make_wan_pipeline

from s2q.assessment import evaluate
from s2q.calibration.recording import record_trajectories
from s2q.checkpoint import PROVENANCE_NAME
from s2q.cli_open import open_for
from s2q.evaluation.video import read_clip
from s2q.models.folder import PARTS, PipelineError
from s2q.models.pipelines import OpenPipeline, open_pipeline
from s2q.progress import NoProgress
from s2q.reuse import ReuseError
from s2q.run import quantize
from s2q.storage import read_json
from s2q.text_encoders.quantize import quantize_text_encoder, text_recipe

CALL = dict(FAMILIES["wan"].call) | {"num_inference_steps": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline of Wan with a second transformer, twice the first."""
    second = make_wan()
    with torch.no_grad():
        second.proj_out.weight.mul_(2)
    return make_wan_pipeline(tmp_path_factory.mktemp("made") / "wan", transformer_2=second, boundary_ratio=0.9)


@pytest.fixture
def opened(folder: Path) -> Callable[..., OpenPipeline]:
    """part → the pipeline with that transformer meant."""
    return lambda part, **call: open_pipeline(str(folder), part=part, **CALL | call)


def test_which_of_two_is_meant_must_be_said(folder: Path) -> None:
    with pytest.raises(PipelineError, match=r"two transformers.* --part, transformer and transformer_2"):
        open_pipeline(str(folder))


def test_a_second_transformer_that_is_not_there_is_refused(family_pipelines: dict[str, Path]) -> None:
    with pytest.raises(PipelineError, match="has no transformer_2: it has transformer"):
        open_pipeline(str(family_pipelines["wan"]), part="transformer_2")


def test_each_is_recorded_in_its_own_steps_and_one_goes_on_where_the_other_stopped(
    opened: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    stores = {}
    for part in PARTS:
        pipeline = opened(part)
        stores[part] = record_trajectories(pipeline, PROMPTS, 0, tmp_path / part, NoProgress())
        assert len(stores[part].timesteps()) == pipeline.steps > 0
        assert len(stores[part].latents(0)) == pipeline.steps + 1
    high, low = stores.values()
    assert len(high.timesteps()) + len(low.timesteps()) == 5
    assert high.timesteps().min() >= 900 > low.timesteps().max()
    assert torch.equal(high.latents(1)[-1], low.latents(1)[0])


@pytest.mark.parametrize("part", PARTS)
def test_streamed_the_blocks_of_both_stay_on_disk_and_nothing_else_changes(
    part: str, opened: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    recipe = cheap("s2q_vdit", "W4A6")
    streamed = opened(part, stream=True)
    for name in PARTS:
        blocks = getattr(streamed.pipe, name).blocks
        assert all(parameter.is_meta for parameter in blocks.parameters()), name
    quantize(streamed, recipe, tmp_path / "disk", prompts=PROMPTS)
    quantize(opened(part), recipe, tmp_path / "memory", prompts=PROMPTS)
    assert folder_bytes(tmp_path / "disk") == folder_bytes(tmp_path / "memory")


def test_the_second_has_a_guidance_scale_of_its_own(opened: Callable[..., OpenPipeline]) -> None:
    call = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
    assert [opened(part, **call).guidance_scale for part in PARTS] == [4.0, 3.0]
    assert opened(PARTS[1], guidance_scale=4.0).guidance_scale == 4.0


def test_one_that_no_step_calls_is_an_error(opened: Callable[..., OpenPipeline], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="transformer_2 is called in none of the 1 steps"):
        record_trajectories(opened(PARTS[1], num_inference_steps=1), PROMPTS, 0, tmp_path, NoProgress())


def test_both_are_quantized_and_work_together_in_plain_diffusers(
    folder: Path, opened: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    loaded = {}
    for part in PARTS:
        made = quantize(opened(part), cheap("s2q_vdit", "W4A6"), tmp_path / part, prompts=PROMPTS)
        loaded[part] = WanTransformer3DModel.from_pretrained(made.folder)
        assert f", {part}={part})" in (made.folder / "README.md").read_text()
        steps = {step for _, step in read_json(made.folder / PROVENANCE_NAME)["samples"]}
        assert max(steps) < opened(part).steps
    again = cheap("s2q_vdit", "W4A6", "optim.epochs=0")
    with pytest.raises(ReuseError, match=r"part \(transformer there, transformer_2 here\)"):
        quantize(opened(PARTS[1]), again, tmp_path / "again", prompts=PROMPTS, reuse=tmp_path / PARTS[0])
    ours = {part: model.proj_out.weight for part, model in loaded.items()}
    assert torch.equal(ours["transformer_2"], 2 * ours["transformer"]), "each comes from its own files"
    clips = []
    for parts in ({}, loaded):
        pipe = WanPipeline.from_pretrained(folder, **parts)
        generator = torch.Generator().manual_seed(0)
        clips.append(pipe(PROMPTS[0], generator=generator, output_type="latent", **CALL).frames)
    assert 0 < float((clips[0] - clips[1]).norm() / clips[0].norm()) < 0.5
    for part, model in loaded.items():
        done = evaluate(opened(part), model, tmp_path / part, tmp_path / f"report-{part}", prompts=PROMPTS[:1])
        errors = done.twins[0].step_errors
        assert 0 < errors[-1] < 1
        assert (errors[0] == 0) == (part == "transformer_2"), "the second has no part in the first step"
    swapped = {"transformer": tmp_path / PARTS[1], "transformer_2": tmp_path / PARTS[0]}
    with pytest.raises(PipelineError, match=r"was made of the transformer_2 .* it cannot be its transformer"):
        open_pipeline(str(folder), part="transformer", **swapped)
    with pytest.raises(PipelineError, match=r"was made of the transformer of .* it cannot be its transformer_2"):
        open_pipeline(str(folder), part="transformer", transformer_2=tmp_path / PARTS[0])


def test_a_folder_of_the_second_without_weights_is_incomplete(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "transformer_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PipelineError, match="transformer_2 has no weights"):
        open_pipeline(str(copy), part="transformer")


@pytest.mark.parametrize("recipe", ["rtn", "s2q_vdit"])
def test_the_command_line_quantizes_the_part_that_is_asked_for(recipe: str, folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "low"
    prompts.write_text("\n".join(PROMPTS))
    sets = [word for change in CHEAP for word in ("--set", change)] if recipe != "rtn" else []
    size = ["--steps", "5", "--height", "32", "--width", "32", "--num-frames", "5", "--device", "cpu"]
    arguments = ["quantize", folder, "--recipe", recipe, "--prompts", prompts, *sets, *size, "-o", out]
    finished = run_s2q(arguments, tmp_path / "logs")
    assert finished.status != 0
    assert "two transformers" in " ".join(finished.err.split())
    finished = run_s2q([*arguments, "--part", "transformer_2"], tmp_path / "logs")
    assert finished.status == 0, finished.err
    made = WanTransformer3DModel.from_pretrained(out).proj_out.weight
    assert torch.equal(made, WanTransformer3DModel.from_pretrained(folder / "transformer_2").proj_out.weight)


def test_a_quantized_text_encoder_goes_with_either(folder: Path, tmp_path: Path) -> None:
    made = quantize_text_encoder(str(folder), text_recipe("rtn", "W8A16"), tmp_path / "text").folder
    for part in PARTS:
        opened = open_for(str(folder), [made], device="cpu", dtype=None, part=part)
        assert opened.pipe.text_encoder.is_quantized


def test_the_command_line_plans_runs_compares_and_generates_with_either_and_both(folder: Path, tmp_path: Path) -> None:
    size = ["--steps", "5", "--height", "32", "--width", "32", "--num-frames", "5", "--device", "cpu"]
    finished = run_s2q(["plan", folder, "--recipe", "rtn", "--json", tmp_path / "plans.json", *size], tmp_path / "logs")
    assert finished.status == 0, finished.err
    plans = read_json(tmp_path / "plans.json")["parts"]
    assert set(plans) == set(PARTS)
    assert all(f"{part} " in finished.out for part in PARTS)
    eight = ["--recipe", "rtn", "--bits", "W8A8"]
    commands = {
        "plan": ["plan", folder, "--recipe", "rtn", "--part", "transformer_2"],
        "high": ["run", folder, "--recipe", "rtn", "--part", "transformer", "--clips", "1", "-o", tmp_path / "high"],
        "low": ["run", folder, *eight, "--part", "transformer_2", "--clips", "1", "-o", tmp_path / "low"],
    }
    both = ["--transformer", tmp_path / "high" / "transformer", "--transformer-2", tmp_path / "low" / "transformer"]
    commands |= {
        "both": ["evaluate", folder, *both, "--clips", "1", "-o", tmp_path / "both"],
        "second": ["evaluate", folder, *both[2:], "--clips", "1", "-o", tmp_path / "second"],
        "clip": ["generate", folder, *both, "--prompt", PROMPTS[0], "-o", tmp_path / "clip.mp4"],
    }
    for name, command in commands.items():
        json_file = [] if name == "high" else ["--json", tmp_path / f"{name}.json"]
        finished = run_s2q([*command, *size, *json_file], tmp_path / "logs")
        assert finished.status == 0, finished.err
    reports = {name: read_json(tmp_path / name / "report.json") for name in ("high", "low", "both")}
    assert (reports["both"]["recipe"], reports["both"]["bits"]) == ("rtn", "W4A8 and W8A8")
    sizes = {name: report["storage"] for name, report in reports.items()}
    for size in ("float_bytes", "quantized_bytes"):
        assert sizes["both"][size] == sizes["high"][size] + sizes["low"][size]
    assert (sizes["high"]["bits_per_block_weight"], sizes["both"]["bits_per_block_weight"]) == (4, 6)
    errors = {
        name: read_json(tmp_path / name / "report.json")["latent_error_by_step"][0]
        for name in ("high", "low", "both", "second")
    }
    assert errors["second"] == errors["low"], "the same transformer, quantized by run and named to evaluate"
    assert errors["low"][0] == 0 < errors["low"][-1], "the second has no part in the first step"
    assert errors["both"][0] == errors["high"][0] > 0, "the second has no part in the first step"
    assert errors["both"][-1] not in (errors["high"][-1], errors["low"][-1])
    assert len(read_clip(tmp_path / "clip.mp4")) == 5


def test_recipes_are_compared_for_one_of_them(folder: Path, tmp_path: Path) -> None:
    size = ["--steps", "5", "--height", "32", "--width", "32", "--num-frames", "5", "--device", "cpu"]
    errors = {}
    for part in PARTS:
        out = tmp_path / part
        asked = ["--recipe", "rtn", "--clips", "2", "--batch", "1", "--part", part, "-o", out]
        finished = run_s2q(["compare", folder, *asked, *size], tmp_path / "logs")
        assert finished.status == 0, finished.err
        (cell,) = read_json(out / "RESULTS.json")["cells"]
        errors[part] = cell["clips"][0]
    high, low = errors.values()
    assert high["latent_error_early"] > 0
    assert low["latent_error_early"] == 0 < low["latent_error_late"], "the second has no part in the first step"
    again = ["compare", folder, *asked[:-1], tmp_path / PARTS[0], *size]
    finished = run_s2q(again, tmp_path / "logs")
    assert finished.status != 0, "the folder belongs to the other transformer"


def test_a_second_where_the_pipeline_has_none_is_refused(family_pipelines: dict[str, Path], tmp_path: Path) -> None:
    command = [
        "generate",
        family_pipelines["wan"],
        "--transformer-2",
        tmp_path,
        "--prompt",
        "a",
        "-o",
        tmp_path / "a.mp4",
    ]
    finished = run_s2q([*command, "--device", "cpu"], tmp_path / "logs")
    assert finished.status == 2
    assert "has no transformer_2: it has transformer" in " ".join(finished.err.split())


def test_evaluate_without_a_quantized_transformer_says_what_to_give(folder: Path, tmp_path: Path) -> None:
    finished = run_s2q(["evaluate", folder, "--device", "cpu"], tmp_path / "logs")
    assert finished.status == 2
    assert "give --transformer, --transformer-2, --text-encoder, or several" in " ".join(finished.err.split())
