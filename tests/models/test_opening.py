"""Pipelines that cannot be used are refused before anything is loaded, with what to do."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from tiny import CALL, TEXT_LENGTH
from tiny_families import FAMILIES

from s2q.models.pipelines import (
    OpenPipeline,
    PipelineError,
    default_call,
    load_transformer,
    locate,
    open_pipeline,
)
from s2q.recipes import get_recipe
from s2q.run import Quantized, quantize
from s2q.runtime.linear import QuantLinear


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline that may be broken."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./none", "none", "a/b/c", "~/none", "clip.mp4"])
def test_a_folder_that_is_missing_is_refused_without_asking_the_hub(source: str) -> None:
    with pytest.raises(PipelineError, match="is not a folder"):
        locate(source)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PipelineError, match="is not a folder"):
        locate(str(tmp_path / "model.safetensors"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no model_index\.json"):
        locate(str(tmp_path))


def test_one_component_is_refused_with_a_hint_to_the_folder_above(tiny_pipeline: Path) -> None:
    with pytest.raises(PipelineError, match="the folder above"):
        locate(str(tiny_pipeline / "transformer"))


def test_a_broken_index_is_refused(copy: Path) -> None:
    (copy / "model_index.json").write_text('{"_class_name": ')
    with pytest.raises(PipelineError, match="not valid JSON"):
        locate(str(copy))


def test_a_pipeline_of_images_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.pop("transformer"))
    with pytest.raises(PipelineError, match="has no transformer"):
        locate(str(copy))


def test_a_transformer_of_another_kind_is_refused_with_those_known(copy: Path) -> None:
    edit(copy / "model_index.json", lambda i: i.update(transformer=["diffusers", "FluxTransformer2DModel"]))
    with pytest.raises(PipelineError, match=r"FluxTransformer2DModel.*Known: .*CogVideoX"):
        locate(str(copy))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("EasyAnimateControlPipeline", r"wants more .* from files \(control_video; known are image, .*\)"),
        ("Cosmos2_5_TransferPipeline", r"wants more .* from files \(controls; "),
        ("CogView4Pipeline", "makes no video"),
        ("NoSuchPipeline", "this diffusers .* does not have"),
    ],
)
def test_a_pipeline_that_cannot_be_called_with_what_files_hold_is_refused(name: str, said: str, copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(_class_name=name))
    with pytest.raises(PipelineError, match=f"is a {name}, which {said}"):
        locate(str(copy))


def test_a_family_whose_packages_are_missing_is_refused_with_them(copy: Path) -> None:
    edit(copy / "model_index.json", lambda i: i.update(transformer=["diffusers", "CosmosTransformer3DModel"]))
    with pytest.raises(PipelineError, match="missing here: pip install cosmos_guardrail torchvision"):
        locate(str(copy))


def test_a_pipeline_that_would_end_for_want_of_ftfy_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[diffusers.SkyReelsV2Pipeline.__module__]
    edit(copy / "model_index.json", lambda index: index.update(_class_name="SkyReelsV2Pipeline"))
    monkeypatch.setattr(module, "ftfy", object(), raising=False)
    assert locate(str(copy)) == copy
    monkeypatch.delattr(module, "ftfy")
    with pytest.raises(
        PipelineError, match=r"is a SkyReelsV2Pipeline, which reads its prompts with .* pip install ftfy"
    ):
        locate(str(copy))


def test_a_call_with_an_argument_that_the_pipeline_does_not_take_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(_class_name="CogVideoXVideoToVideoPipeline"))
    with pytest.raises(PipelineError, match="take no num_frames: the video that it is given decides the length"):
        open_pipeline(str(copy), **CALL)


def test_a_pipeline_of_two_transformers_is_refused(family_pipelines: dict[str, Path], tmp_path: Path) -> None:
    wan = Path(shutil.copytree(family_pipelines["wan"], tmp_path / "wan"))
    assert json.loads((wan / "model_index.json").read_text())["transformer_2"] == [None, None]
    assert locate(str(wan)) == wan
    shutil.copytree(wan / "transformer", wan / "transformer_2")
    edit(wan / "model_index.json", lambda i: i.update(transformer_2=["diffusers", "WanTransformer3DModel"]))
    with pytest.raises(PipelineError, match="two transformers"):
        locate(str(wan))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_size_that_is_no_whole_number_of_patches_is_refused(
    name: str, open_family: Callable[..., OpenPipeline]
) -> None:
    multiple = 8 if name in ("cogvideox", "ltx") else 16
    with pytest.raises(PipelineError, match=rf"height 36 and width 35: .* multiples of {multiple} pixels"):
        open_family(name, height=36, width=35)
    assert open_family(name, height=32, width=48).call["width"] == 48


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_length_is_set_only_where_the_model_fixes_it(name: str, family_pipelines: dict[str, Path]) -> None:
    folder = family_pipelines[name]
    expected = {"max_sequence_length": TEXT_LENGTH} if name == "cogvideox" else {}
    assert default_call(str(folder), folder) == expected


def test_a_pipeline_whose_packages_are_missing_is_refused_with_their_names(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StandIn:
        _backends = ("torch", "opencv")

    monkeypatch.setattr(diffusers, "CogVideoXPipeline", StandIn)
    with pytest.raises(PipelineError, match=r"CogVideoXPipeline, for which .* installed: torch, opencv"):
        locate(str(copy))


def test_a_pipeline_without_its_transformer_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", lambda index: index.update(transformer=[None, None]))
    with pytest.raises(PipelineError):
        locate(str(copy))


def test_half_downloaded_parts_are_all_listed(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "text_encoder" / "model.safetensors.incomplete").touch()
    with pytest.raises(PipelineError, match="half downloaded") as caught:
        locate(str(copy))
    for part in ("vae", "transformer", "text_encoder"):
        assert part in str(caught.value)


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PipelineError, match=r"model-1.*model-2"):
        locate(str(copy))


def test_weights_cut_short_are_refused(copy: Path) -> None:
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PipelineError, match="cannot load"):
        open_pipeline(str(copy))


def test_a_whole_pipeline_opens_with_the_call_asked_for(tiny_pipeline: Path) -> None:
    opened = open_pipeline(str(tiny_pipeline), dtype=torch.bfloat16, guidance_scale=None, **CALL)
    assert opened.call == {"max_sequence_length": TEXT_LENGTH, **CALL}
    assert opened.pipe.transformer.dtype == torch.bfloat16
    assert opened.family.name == "cogvideox"


def test_videos_are_written_as_fast_as_the_family_is_shown(family_pipelines: dict[str, Path]) -> None:
    shown = {name: open_pipeline(str(family_pipelines[name])).fps for name in ("cogvideox", "wan", "hunyuan_video")}
    assert shown == {"cogvideox": 8, "wan": 16, "hunyuan_video": 15}


def test_a_frame_rate_in_the_call_is_that_of_the_video(family_pipelines: dict[str, Path]) -> None:
    assert open_pipeline(str(family_pipelines["ltx"]), frame_rate=30).fps == 30


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_transformer_takes_the_place_of_the_float_one(
    name: str, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    quantize(open_family(name), get_recipe("rtn", "W4A6"), tmp_path / "out")
    opened = open_family(name, transformer=tmp_path / "out")
    assert any(isinstance(module, QuantLinear) for module in opened.pipe.transformer.modules())


def test_a_transformer_of_another_model_does_not_take_its_place(
    open_family: Callable[..., OpenPipeline], quantized: Callable[..., Quantized]
) -> None:
    said = "is a CogVideoXTransformer3DModel, and the transformer of .* is a WanTransformer3DModel"
    with pytest.raises(PipelineError, match=said):
        open_family("wan", transformer=quantized().folder)


@pytest.mark.parametrize("part", [".", "vae", "scheduler", "none"])
def test_what_is_no_transformer_is_not_loaded_as_one(part: str, tiny_pipeline: Path) -> None:
    with pytest.raises(PipelineError):
        load_transformer(tiny_pipeline / part, torch.float32)


def test_a_quantized_folder_is_refused_as_a_pipeline(quantized: Callable[..., Quantized]) -> None:
    with pytest.raises(PipelineError, match="the folder above"):
        locate(str(quantized().folder))
