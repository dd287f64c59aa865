"""A fine-tune takes over what was found for its base, and nothing that does not fit it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline
from processes import run_s2q
from safetensors.torch import load_file
from tiny import CALL, PROMPTS, cheap, folder_bytes, make_transformer

import s2q
from s2q.checkpoint import PROVENANCE_NAME, CheckpointError
from s2q.models.pipelines import OpenPipeline, open_pipeline
from s2q.numerics.packing import unpack
from s2q.recipe import Recipe
from s2q.reuse import ReuseError, open_earlier, recipe_after
from s2q.run import Quantized, quantize

WEIGHTS = "diffusion_pytorch_model.safetensors"


def again(name: str = "s2q_vdit", *changes: str) -> Recipe:
    """The recipe of the `quantized` fixture, learning nothing more."""
    return cheap(name, "W4A6", "optim.epochs=0", *changes)


@pytest.fixture(scope="session")
def fine_tune(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, every weight of its blocks moved by a hundredth of their spread."""
    folder = tmp_path_factory.mktemp("fine-tune") / "pipeline"
    shutil.copytree(tiny_pipeline, folder)
    model, generator = make_transformer(), torch.Generator().manual_seed(1)
    for parameter in model.transformer_blocks.parameters():
        spread = parameter.std() if parameter.numel() > 1 else torch.tensor(0.0)
        parameter.data += 0.01 * spread.nan_to_num() * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture
def tuned(fine_tune: Path) -> OpenPipeline:
    """That pipeline, freshly loaded."""
    return open_pipeline(str(fine_tune), **CALL)


@pytest.mark.parametrize("name", ["s2q_vdit", "q_vdit", "svdquant", "quarot"])
def test_the_base_itself_is_quantized_to_what_it_was(
    name: str, quantized: Callable[..., Quantized], opened: OpenPipeline, tmp_path: Path
) -> None:
    base = quantized(name)
    made = quantize(opened, again(name), tmp_path / "out", prompts=PROMPTS, reuse=base.folder)
    before, after = (load_file(folder / WEIGHTS) for folder in (base.folder, made.folder))
    assert before.keys() == after.keys()
    same = total = 0
    for key, tensor in before.items():
        if key.endswith(".weight_packed"):
            columns = int(before[key.replace("packed", "shape")][1])
            same += int((unpack(tensor, 4, columns) == unpack(after[key], 4, columns)).sum())
            total += unpack(tensor, 4, columns).numel()
        elif tensor.is_floating_point():
            assert torch.allclose(tensor, after[key], rtol=2e-3, atol=1e-5), key
    assert same > 0.97 * total  # transforms are made again to float32's last digits, which moves a few codes
    errors = [[block["after"] for block in noted(made)["blocks"]] for made in (base, made)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_step_sizes_are_searched_again_from_those_that_were_found(
    quantized: Callable[..., Quantized], opened: OpenPipeline, tmp_path: Path
) -> None:
    """They are among those tried. The Hessians are of weights rounded to nearest at them, so that the error may differ."""
    base = quantized("s2q_plus")
    made = quantize(opened, again("s2q_plus"), tmp_path / "out", prompts=PROMPTS, reuse=base.folder)
    errors = [[block["after"] for block in noted(made)["blocks"]] for made in (base, made)]
    assert all(after < 1.25 * before for before, after in zip(*errors, strict=True))
    before, after = (load_file(folder / WEIGHTS) for folder in (base.folder, made.folder))
    for key in before:
        if key.endswith((".input_scale", ".input_left", ".input_right")):
            assert torch.allclose(before[key], after[key], rtol=2e-3, atol=1e-5), key


def noted(made: Quantized) -> dict[str, Any]:
    return json.loads((made.folder / PROVENANCE_NAME).read_text())


def test_a_fine_tune_has_its_own_weights_under_the_transforms_of_its_base(
    quantized: Callable[..., Quantized], tuned: OpenPipeline, tmp_path: Path
) -> None:
    base = quantized()
    made = quantize(tuned, again(), tmp_path / "out", prompts=PROMPTS, reuse=base.folder)
    before, after = (load_file(folder / WEIGHTS) for folder in (base.folder, made.folder))
    for key in before:
        if key.endswith((".input_scale", ".input_left", ".input_right", ".input_clip")):
            assert torch.allclose(before[key], after[key], rtol=1e-3, atol=1e-5), key
    assert any(not torch.equal(before[key], after[key]) for key in before if key.endswith(".weight_packed"))
    for key in ("samples", "salience", "prompts", "timesteps"):
        assert noted(made)[key] == noted(base)[key]
    assert noted(made)["reused"]["settings"] == noted(base)["settings"]
    assert noted(made)["reused"]["taken"] == ["transforms and clips", "selection", "trajectories"]
    assert (
        folder_bytes(made.workspace.folder / "trajectories").keys()
        == folder_bytes(base.workspace.folder / "trajectories").keys()
    )
    assert made.seconds["trajectories"] == made.seconds["selection"] == made.seconds["token_weights"] == 0
    assert made.reused["earlier_seconds"] == base.seconds
    nearest = [block["before"] for block in noted(made)["blocks"]]
    assert all(block["after"] < before for block, before in zip(noted(made)["blocks"], nearest, strict=True))


def test_learning_goes_on_from_there_with_the_received_attention_of_the_base(
    quantized: Callable[..., Quantized], tuned: OpenPipeline, tmp_path: Path
) -> None:
    base = quantized()
    rounded = quantize(tuned, again(), tmp_path / "rounded", prompts=PROMPTS, reuse=base.folder)
    learned = quantize(
        tuned, cheap("s2q_vdit", "W4A6", "optim.epochs=15"), tmp_path / "on", prompts=PROMPTS, reuse=base.folder
    )
    assert "received attention" in noted(learned)["reused"]["taken"]
    errors = [sum(block["after"] for block in noted(made)["blocks"]) for made in (rounded, learned)]
    assert errors[1] < errors[0]


def test_without_its_work_folder_the_checkpoint_is_enough(
    quantized: Callable[..., Quantized], tuned: OpenPipeline, tmp_path: Path
) -> None:
    alone = shutil.copytree(quantized().folder, tmp_path / "alone")
    made = quantize(tuned, again(), tmp_path / "out", prompts=PROMPTS, reuse=alone)
    assert noted(made)["reused"]["taken"] == ["transforms and clips", "selection"]
    assert made.reused["earlier_seconds"] is None
    assert made.seconds["trajectories"] > 0


def test_broken_off_it_goes_on_to_the_same_bytes(
    quantized: Callable[..., Quantized], tuned: OpenPipeline, tmp_path: Path
) -> None:
    class Broken(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("calibration", 1):
            raise Broken

    base = quantized().folder
    with pytest.raises(Broken):
        quantize(tuned, again(), tmp_path / "out", prompts=PROMPTS, reuse=base, progress=stop)
    quantize(tuned, again(), tmp_path / "out", prompts=PROMPTS, reuse=base)
    quantize(tuned, again(), tmp_path / "fresh", prompts=PROMPTS, reuse=base)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "fresh")


def test_in_memory_it_is_the_same(quantized: Callable[..., Quantized], fine_tune: Path, tmp_path: Path) -> None:
    base = quantized().folder
    pipe = CogVideoXPipeline.from_pretrained(fine_tune)
    done = s2q.quantize(pipe, again(), prompts=PROMPTS, reuse=base, **CALL)
    made = quantize(open_pipeline(str(fine_tune), **CALL), again(), tmp_path / "out", prompts=PROMPTS, reuse=base)
    assert done.provenance["reused"] == noted(made)["reused"]
    state = pipe.transformer.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in load_file(made.folder / WEIGHTS).items())


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"recipe": cheap("s2q_vdit", "W4A4")}, "linear.*W4A6 there, s2q_vdit W4A4 here"),
    "recipe": ({"recipe": cheap("quarot", "W4A6")}, "linear"),
    "samples": ({"recipe": again("s2q_vdit", "sampler.count=3")}, "sampler"),
    "seed": ({"seed": 5}, "seed .0 there, 5 here"),
    "prompts": ({"prompts": PROMPTS[::-1]}, "prompts"),
    "nothing calibrated": ({"recipe": cheap("rtn", "W4A6")}, "calibrates nothing"),
    "learned rounding": ({"recipe": cheap("q_diffusion", "W4A6")}, "adaround"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_run_that_does_not_fit_is_refused_before_work_starts(
    case: str, quantized: Callable[..., Quantized], tuned: OpenPipeline, tmp_path: Path
) -> None:
    given, said = DIFFERENT[case]
    given = {"recipe": again(), "prompts": PROMPTS} | given
    with pytest.raises(ReuseError, match=said):
        quantize(tuned, given.pop("recipe"), tmp_path / "out", reuse=quantized().folder, **given)
    assert not list(tmp_path.iterdir())


def test_another_architecture_and_other_calls_are_named(
    quantized: Callable[..., Quantized], open_family: Callable[..., OpenPipeline], fine_tune: Path, tmp_path: Path
) -> None:
    said = r"these differ: the model \(CogVideoXTransformer3DModel there, WanTransformer3DModel here\); "
    with pytest.raises(ReuseError, match=said):
        quantize(open_family("wan"), again(), tmp_path / "out", prompts=PROMPTS, reuse=quantized().folder)
    longer = open_pipeline(str(fine_tune), **(CALL | {"num_inference_steps": 4}))
    with pytest.raises(ReuseError, match=r"num_inference_steps of the calls \(3 there, 4 here\)"):
        quantize(longer, again(), tmp_path / "out", prompts=PROMPTS, reuse=quantized().folder)


@pytest.mark.parametrize(("name", "bits"), [(None, "W4A4"), ("s2q_plus", None), ("quarot", "W8A8")])
def test_a_recipe_that_was_not_the_earlier_one_is_refused_before_prompts_are_looked_at(
    name: str | None, bits: str | None, quantized: Callable[..., Quantized]
) -> None:
    earlier = open_earlier(quantized().folder)
    with pytest.raises(ReuseError, match=rf"s2q_vdit W4A6, not {name or 's2q_vdit'} {bits or 'W4A6'}: .* Name none"):
        recipe_after(earlier, name, bits)


def test_what_no_run_left_cannot_be_reused(quantized: Callable[..., Quantized], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_earlier(tmp_path)
    bare = shutil.copytree(quantized().folder, tmp_path / "bare")
    (bare / PROVENANCE_NAME).unlink()
    with pytest.raises(ReuseError, match="how it was made"):
        open_earlier(bare)


def test_the_command_takes_recipe_prompts_and_calls_from_the_earlier_run_and_reports_it(
    quantized: Callable[..., Quantized], fine_tune: Path, tmp_path: Path
) -> None:
    base = quantized()
    command = ["run", fine_tune, "--reuse", base.folder, "--clips", "1", "-o", tmp_path / "out"]
    done = run_s2q(command, tmp_path / "logs")
    assert done.status == 0, done.err
    assert "Taken over from an earlier run" in done.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["recipe"], report["bits"]) == ("s2q_vdit", "W4A6"), "those of the base, where none are named"
    assert report["reused"]["saved_seconds"] == pytest.approx(
        sum(base.seconds.values()) - sum(report["seconds"].values()) + report["seconds"]["evaluation"]
    )
    assert any("Taken over" in note for note in report["notes"])
    assert "Taken over" in (tmp_path / "out" / "report.html").read_text()
    assert len(report["blocks"]) == 2
    # Another run starts from the folder of this one.
    chained = run_s2q(["quantize", fine_tune, "--reuse", tmp_path / "out", "-o", tmp_path / "next"], tmp_path / "l")
    assert chained.status == 0, chained.err
    assert "trajectories" in chained.out
