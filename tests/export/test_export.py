"""What leaves s2q is the same model to the programs that read it, and what cannot leave is refused before any file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import PROMPTS, cheap, make_inputs, tampered
from tiny_families import FAMILIES
from torch import nn

from s2q.checkpoint import CheckpointError
from s2q.deferred import made
from s2q.export.float_weights import float_state, original_names, write_comfyui, write_dequantized
from s2q.export.source import open_folder
from s2q.models.pipelines import open_pipeline
from s2q.run import Quantized, quantize
from s2q.runtime.linear import QuantLinear

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(quantized: Callable[..., Quantized]) -> Path:
    """Everything but groups and branches: scales, rotations, clips."""
    return quantized().folder


@pytest.fixture(scope="module")
def wan_folder(family_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    opened = open_pipeline(str(family_pipelines["wan"]), **FAMILIES["wan"].call)
    return quantize(opened, cheap("rtn", "W4A6"), tmp_path_factory.mktemp("wan") / "out", prompts=PROMPTS).folder


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(**make_inputs(), return_dict=False)[0]


def with_float_activations(model: nn.Module) -> nn.Module:
    """The quantized model without rounding its activations: the oracle of what dequantized weights should do."""
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.scheme = module.scheme.model_copy(update={"act_bits": None})
    return model


@pytest.mark.parametrize(
    ("recipe", "bits"), [("s2q_vdit", "W4A6"), ("svdquant", "W4A4"), ("s2q_plus", "W4A4"), ("q_dit", "W4A8")]
)
def test_the_dequantized_folder_is_the_quantized_weights_function(
    recipe: str, bits: str, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    made = quantized(recipe, bits).folder
    write_dequantized(open_folder(made), tmp_path / "out")
    plain = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out").eval()
    assert not any(isinstance(module, QuantLinear) for module in plain.modules())
    expected = output(with_float_activations(CogVideoXTransformer3DModel.from_pretrained(made).eval()))
    assert torch.allclose(output(plain), expected, rtol=1e-3, atol=1e-4)


def test_the_dequantized_folder_names_s2q_nowhere_and_has_no_provenance(folder: Path, tmp_path: Path) -> None:
    write_dequantized(open_folder(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", WEIGHTS]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_what_was_not_quantized_is_bit_for_bit_the_same(folder: Path) -> None:
    stored, state = load_file(folder / WEIGHTS), made(float_state(open_folder(folder), torch.bfloat16))
    same = [name for name in state if name in stored]
    assert same
    assert all(torch.equal(state[name], stored[name]) and state[name].dtype == stored[name].dtype for name in same)
    assert state["transformer_blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16


def test_names_and_shapes_are_those_of_the_float_model(folder: Path, tiny_pipeline: Path) -> None:
    state, plain = float_state(open_folder(folder)), load_file(tiny_pipeline / "transformer" / WEIGHTS)
    assert {n: t.like.shape for n, t in state.items()} == {n: t.shape for n, t in plain.items()}
    assert {n: t.like.shape for n, t in state.items()} == {n: t.shape for n, t in made(state).items()}
    assert all(deferred.like.dtype == deferred.make().dtype for deferred in state.values())


def test_shards_are_read_as_one_file(folder: Path, tmp_path: Path) -> None:
    CogVideoXTransformer3DModel.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    one, many = (made(float_state(open_folder(each))) for each in (folder, tmp_path))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_the_file_for_comfyui_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    write_comfyui(open_folder(folder), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        header, names = file.metadata(), set(file.keys())
    assert header["model_class"] == "CogVideoXTransformer3DModel"
    assert header["names"] == "diffusers"
    assert json.loads(header["s2q"])["weights"] == "float"
    assert names == set(float_state(open_folder(folder)))


def test_wan_gets_the_names_of_the_released_files(wan_folder: Path, tmp_path: Path) -> None:
    """Proved by the converter that diffusers has for those files."""
    write_comfyui(open_folder(wan_folder), tmp_path / "wan.safetensors")
    written = load_file(tmp_path / "wan.safetensors")
    some = ("head.modulation", "blocks.0.self_attn.q.weight", "blocks.1.cross_attn.o.bias", "blocks.0.ffn.0.weight")
    assert set(some) <= set(written)
    state = made(float_state(open_folder(wan_folder)))
    back = convert_wan_transformer_to_diffusers(written)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_wan_of_images_too_is_named_back_by_diffusers() -> None:
    model = FAMILIES["wan"].make_transformer(image_dim=16, added_kv_proj_dim=32)
    names = original_names("WanTransformer3DModel", list(model.state_dict()))
    back = convert_wan_transformer_to_diffusers({new: torch.zeros(1) for new in names.values()})
    assert set(back) == set(names)
    assert "blocks.0.cross_attn.k_img.weight" in names.values()


def test_wan_loads_back_from_its_dequantized_folder(wan_folder: Path, tmp_path: Path) -> None:
    write_dequantized(open_folder(wan_folder), tmp_path / "out")
    plain = WanTransformer3DModel.from_pretrained(tmp_path / "out")
    assert not getattr(plain, "is_quantized", False)


def test_a_damaged_folder_is_not_exported(folder: Path, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer_blocks.1.ff.net.2.weight_packed"][0, 0] ^= 1
        tensors["proj_out.bias"][0] += 1

    hostile = tampered(folder, tmp_path / "hostile", tensors=damage)
    with pytest.raises(CheckpointError, match=r"ff\.net\.2 .*proj_out\.bias"):
        open_folder(hostile)


WITHOUT_NOTES = {
    "missing": (lambda t: t.pop("proj_out.bias"), r"proj_out\.bias is missing"),
    "renamed": (lambda t: t.update(extra=t.pop("proj_out.bias")), r"proj_out\.bias is missing.*extra is not part"),
    "other shape": (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"has shape \[3\]"),
    "not finite": (lambda t: t["proj_out.bias"].fill_(float("inf")), "not finite"),
}


@pytest.mark.parametrize("damage", WITHOUT_NOTES)
def test_float_tensors_are_checked_without_the_notes_too(damage: str, folder: Path, tmp_path: Path) -> None:
    change, said = WITHOUT_NOTES[damage]
    hostile = tampered(folder, tmp_path / "hostile", tensors=change)
    (hostile / "s2q_provenance.json").unlink()
    with pytest.raises(CheckpointError, match=said):
        open_folder(hostile)


def test_a_linear_that_the_model_does_not_have_is_refused(folder: Path, tmp_path: Path) -> None:
    hostile = tampered(folder, tmp_path / "hostile", config=lambda config: config.update(num_layers=1))
    (hostile / "s2q_provenance.json").unlink()
    with pytest.raises(CheckpointError, match=r"no linear layer named transformer_blocks\.1"):
        open_folder(hostile)


def test_codes_of_another_width_are_refused(folder: Path, tmp_path: Path) -> None:
    hostile = tampered(folder, tmp_path / "hostile", config=lambda config: config.update(time_embed_dim=24))
    (hostile / "s2q_provenance.json").unlink()
    with pytest.raises(CheckpointError, match=r"norm1\.linear\.weight_shape is not that of the model"):
        open_folder(hostile)


def test_a_float_folder_is_no_source(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not quantized"):
        open_folder(tiny_pipeline / "transformer")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_folder(tmp_path)
