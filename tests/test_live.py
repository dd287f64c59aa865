"""A pipeline that a program loaded itself: quantized where it stands, to the bits that the folder has."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel, DiffusionPipeline
from peft import LoraConfig
from tiny import CALL, PROMPTS, cheap, folder_bytes, make_inputs
from tiny_families import FAMILIES
from tiny_media import MEDIA_PIPELINES, with_media
from torch import nn

import s2q
from s2q.checkpoint import PROVENANCE_NAME
from s2q.media import Prompt, media_of
from s2q.models.folder import PipelineError
from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.reuse import ReuseError
from s2q.run import Quantized
from s2q.runtime.linear import QuantLinear
from s2q.runtime.refusals import UnsupportedError

RECIPE = cheap("s2q_vdit", "W4A6")


@pytest.fixture
def pipe(tiny_pipeline: Path) -> CogVideoXPipeline:
    """The tiny pipeline as a program loads it, without s2q."""
    return CogVideoXPipeline.from_pretrained(tiny_pipeline)


def assert_same_tensors(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (other_name, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == other_name
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_the_bits_of_the_folder(
    name: str, family_pipelines: dict[str, Path], open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    loaded = DiffusionPipeline.from_pretrained(family_pipelines[name])
    s2q.quantize(loaded, RECIPE, prompts=PROMPTS, **FAMILIES[name].call)
    made = s2q.quantize(open_family(name), RECIPE, tmp_path / "out", prompts=PROMPTS)
    assert_same_tensors(loaded.transformer, load_transformer(made.folder, torch.float32))


def test_a_pipeline_with_images_gets_the_bits_of_the_folder_and_is_reused_with_the_same_images_alone(
    tmp_path: Path,
) -> None:
    made = MEDIA_PIPELINES["cogvideox-i2v"]
    folder = made.save(tmp_path / "pipeline")
    prompts = with_media(PROMPTS, made.media, tmp_path)
    loaded = DiffusionPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="wants image with each prompt"):
        s2q.quantize(loaded, RECIPE, prompts=PROMPTS, **made.call)
    s2q.quantize(loaded, RECIPE, prompts=prompts, **made.call)
    base = s2q.quantize(made.open(folder), RECIPE, tmp_path / "out", prompts=prompts)
    assert_same_tensors(loaded.transformer, load_transformer(base.folder, torch.float32))
    assert "pipeline_tag: image-to-video" in (base.folder / "README.md").read_text()
    rounded, reuse = cheap("s2q_vdit", "W4A6", "optim.epochs=0"), {"reuse": base.folder, **made.call}
    done = s2q.quantize(DiffusionPipeline.from_pretrained(folder), rounded, prompts=prompts, **reuse)
    assert "trajectories" in done.provenance["reused"]["taken"]
    swapped = [
        Prompt(prompt, image=media_of(other)["image"]) for prompt, other in zip(prompts, prompts[::-1], strict=True)
    ]
    with pytest.raises(ReuseError, match="prompts"):
        s2q.quantize(DiffusionPipeline.from_pretrained(folder), rounded, prompts=swapped, **reuse)


def test_it_is_saved_by_its_own_method_and_loads_as_the_folder_does(
    pipe: CogVideoXPipeline, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    before = pipe.transformer
    s2q.quantize(pipe, RECIPE, prompts=PROMPTS, **CALL)
    model = pipe.transformer
    assert model is before
    assert model.is_quantized
    assert model.hf_quantizer.is_serializable
    model.save_pretrained(tmp_path / "saved")
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "saved").eval()
    folder = CogVideoXTransformer3DModel.from_pretrained(quantized().folder).eval()
    assert_same_tensors(again, folder)
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "saved", quantized().folder))
    assert {k: v for k, v in ours.items() if k != "_name_or_path"} == theirs
    with torch.no_grad():
        outputs = [m(**make_inputs(), return_dict=False)[0] for m in (model, again, folder)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_it_generates_at_once_and_refuses_what_packed_weights_cannot(pipe: CogVideoXPipeline) -> None:
    s2q.quantize(pipe, "rtn", bits="W8A8", **CALL)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPTS[0], max_sequence_length=8, output_type="np", **CALL).frames[0].std() > 0
    with pytest.raises(UnsupportedError, match="fuse_lora"):
        pipe.transformer.fuse_lora()
    with pytest.raises(ValueError, match="Casting a quantized model"):
        pipe.transformer.to(torch.bfloat16)


def test_only_the_bars_of_the_user_are_as_before_and_nothing_is_printed(
    pipe: CogVideoXPipeline, capsys: pytest.CaptureFixture
) -> None:
    pipe.set_progress_bar_config(desc="mine")
    s2q.quantize(pipe, RECIPE, prompts=PROMPTS, **CALL)
    assert pipe._progress_bar_config == {"desc": "mine"}
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_what_it_tells_is_what_the_folder_tells(pipe: CogVideoXPipeline, quantized: Callable[..., Quantized]) -> None:
    done = s2q.quantize(pipe, RECIPE, prompts=PROMPTS, **CALL)
    assert done.seconds.keys() == quantized().seconds.keys()
    assert done.provenance["pipeline"] == "in memory"
    theirs = json.loads((quantized().folder / PROVENANCE_NAME).read_text())
    for key in ("recipe", "seed", "call", "samples", "salience", "blocks", "prompts", "storage"):
        assert json.loads(json.dumps(done.provenance[key])) == theirs[key], key


def test_with_an_output_the_pipeline_stays_as_it_is(pipe: CogVideoXPipeline, tmp_path: Path) -> None:
    before = copy.deepcopy(pipe.transformer.state_dict())
    made = s2q.quantize(pipe, RECIPE, tmp_path / "out", prompts=PROMPTS, **CALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    assert json.loads((made.folder / PROVENANCE_NAME).read_text())["pipeline"] == "in memory"
    assert "a pipeline in memory" in (made.folder / "README.md").read_text()
    s2q.quantize(pipe, RECIPE, prompts=PROMPTS, **CALL)
    assert_same_tensors(pipe.transformer, load_transformer(made.folder, torch.float32))


def test_a_broken_off_call_goes_on_in_its_work_folder_and_other_weights_do_not(
    pipe: CogVideoXPipeline, tiny_pipeline: Path, tmp_path: Path
) -> None:
    class Broken(Exception):
        pass

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("calibration", total // 2):
            raise Broken

    with pytest.raises(Broken):
        s2q.quantize(pipe, RECIPE, prompts=PROMPTS, work=tmp_path / "work", progress=stop, **CALL)
    assert not any(isinstance(module, QuantLinear) for module in pipe.transformer.modules())
    begun = folder_bytes(tmp_path / "work" / "trajectories")
    assert len(begun) == len(PROMPTS)
    other = CogVideoXPipeline.from_pretrained(tiny_pipeline)
    with torch.no_grad():
        other.transformer.proj_out.weight.add_(1e-3)
    with pytest.raises(ValueError, match="weights differ"):
        s2q.quantize(other, RECIPE, prompts=PROMPTS, work=tmp_path / "work", **CALL)
    s2q.quantize(pipe, RECIPE, prompts=PROMPTS, work=tmp_path / "work", **CALL)
    assert folder_bytes(tmp_path / "work" / "trajectories") == begun
    fresh = CogVideoXPipeline.from_pretrained(tiny_pipeline)
    s2q.quantize(fresh, RECIPE, prompts=PROMPTS, **CALL)
    assert_same_tensors(pipe.transformer, fresh.transformer)


def test_a_function_hears_every_item_of_every_stage(pipe: CogVideoXPipeline) -> None:
    heard: list[tuple[str, int, int]] = []
    s2q.quantize(
        pipe,
        RECIPE,
        prompts=PROMPTS,
        progress=lambda stage, done, total, note: heard.append((stage, done, total)),
        **CALL,
    )
    stages = list(dict.fromkeys(stage for stage, *_ in heard))
    assert stages == ["trajectories", "selection", "token_weights", "calibration"]
    for name in stages:
        counts = [(done, total) for stage, done, total in heard if stage == name]
        assert counts[0][0] == 0
        assert counts[-1][0] == counts[-1][1] > 0
        assert [done for done, _ in counts] == sorted(done for done, _ in counts)


def offloaded(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.transformer, torch.device("cpu"))


WRONG: dict[str, tuple[Callable[[Any], Any], dict[str, Any], type[Exception], str]] = {
    "offloading": (offloaded, {}, PipelineError, "hooks.*remove_all_hooks"),
    "adapters": (
        lambda pipe: pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"])),
        {},
        PipelineError,
        "fuse_lora",
    ),
    "no transformer": (lambda pipe: setattr(pipe, "transformer", None), {}, PipelineError, "no transformer"),
    "height": (lambda pipe: None, {"height": 17}, PipelineError, "height 17"),
    "part": (lambda pipe: None, {"part": "transformer_2"}, PipelineError, "has no transformer_2"),
    "recipe": (lambda pipe: None, {"recipe": "awq"}, ValueError, "s2q_vdit"),
    "few prompts": (lambda pipe: None, {"prompts": ["one"]}, ValueError, "prompts"),
    "progress": (lambda pipe: None, {"progress": 3}, TypeError, "stage, done, total, note"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_before_anything_changes(case: str, pipe: CogVideoXPipeline) -> None:
    spoil, more, kind, said = WRONG[case]
    spoil(pipe)
    with pytest.raises(kind, match=said):
        s2q.quantize(pipe, **({"recipe": RECIPE, "prompts": PROMPTS} | CALL | more))
    modules = pipe.transformer.modules() if pipe.transformer is not None else ()
    assert not any(isinstance(module, QuantLinear) for module in modules)


def test_what_is_no_pipeline_is_told_so(tiny_pipeline: Path, opened: OpenPipeline) -> None:
    with pytest.raises(TypeError, match="open_pipeline"):
        s2q.quantize(str(tiny_pipeline))
    with pytest.raises(TypeError, match="height"):
        s2q.quantize(opened, RECIPE, height=16)


def test_a_quantized_pipeline_is_not_quantized_again(pipe: CogVideoXPipeline) -> None:
    s2q.quantize(pipe, "rtn", **CALL)
    with pytest.raises(PipelineError, match="quantized already"):
        s2q.quantize(pipe, "rtn", **CALL)
