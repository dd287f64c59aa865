"""compressed-tensors itself reads what we export, to the same weights bit for bit; what it cannot say is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file
from tiny import make_inputs
from torch import nn

from s2q.checkpoint import CheckpointError
from s2q.deferred import made
from s2q.export.compressed_tensors import quantization_config, write_compressed_tensors
from s2q.export.source import open_folder
from s2q.recipes import RECIPES
from s2q.run import Quantized

compressed_tensors = pytest.importorskip("compressed_tensors", reason="the reader is the package compressed-tensors")

WEIGHTS = "diffusion_pytorch_model.safetensors"
EXPORTED = [("rtn", "W4A6"), ("rtn", "W8A8"), ("rtn", "W3A16"), ("gptq", "W4A8")]


def read_back(folder: Path) -> nn.Module:
    """As compressed-tensors' users do: a float model, their configuration, their decompression."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    settings = json.loads((folder / "config.json").read_text())
    config = QuantizationConfig.model_validate(settings.pop("quantization_config"))
    model = CogVideoXTransformer3DModel.from_config(settings).eval()
    apply_quantization_config(model, config)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)  # makes the packed parameters that the file fills
    model.load_state_dict(load_file(folder / WEIGHTS), strict=True, assign=True)
    compressor.decompress_model(model)
    return model


@pytest.mark.parametrize(("recipe", "bits"), EXPORTED)
def test_it_reads_the_same_weights_bit_for_bit(
    recipe: str, bits: str, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    source = open_folder(quantized(recipe, bits).folder)
    write_compressed_tensors(source, tmp_path / "out")
    model = read_back(tmp_path / "out")
    for name in source.spec.scheme_of():
        assert torch.equal(model.get_submodule(name).weight, source.linear(name).dequantize().weight), name
    for name, tensor in made(source.kept()).items():
        assert torch.equal(model.state_dict()[name], tensor), name


@torch.no_grad()
def test_its_own_forward_is_close_to_ours(quantized: Callable[..., Quantized], tmp_path: Path) -> None:
    """Not equal: its 8-bit step is max|x| / 127.5 a token, ours max|x| / 127."""
    folder = quantized("rtn", "W8A8").folder
    write_compressed_tensors(open_folder(folder), tmp_path / "out")
    theirs = read_back(tmp_path / "out")(**make_inputs(), return_dict=False)[0]
    ours = CogVideoXTransformer3DModel.from_pretrained(folder).eval()(**make_inputs(), return_dict=False)[0]
    assert (theirs - ours).norm() < 0.02 * ours.norm()
    assert not torch.equal(theirs, ours)


@pytest.mark.parametrize(
    "changes",
    [{"symmetric_weights": False}, {"group_size": 16}, {"group_size": 16, "symmetric_weights": False}],
    ids=str,
)
def test_groups_and_zero_points_are_read_to_the_same_weights(changes: dict, tmp_path: Path) -> None:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from tiny import make_linear

    from s2q.export.compressed_tensors import _weights

    linear = make_linear(24, 32, 4, 8, **changes)
    scheme = QuantizationScheme(targets=["x"], weights=_weights(linear.scheme, changes.get("group_size")))
    read = PackedQuantizationCompressor.decompress({n: t.data for n, t in linear.packed_tensors().items()}, scheme)
    assert torch.equal(read["weight"], linear.dequantize().weight)


def test_weights_are_copied_byte_for_byte_and_every_linear_is_named(
    quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    folder = quantized("rtn", "W4A6").folder
    source = open_folder(folder)
    write_compressed_tensors(source, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert sorted(name for g in groups.values() for name in g["targets"]) == sorted(source.spec.scheme_of())


def test_activations_can_be_written_wider_for_engines_without_six_bits(quantized: Callable[..., Quantized]) -> None:
    source = open_folder(quantized("rtn", "W4A6").folder)
    for asked, written in ((None, {6, 8}), (8, {8})):  # modulation keeps 8 bits
        groups = quantization_config(source, asked)["config_groups"].values()
        assert {g["input_activations"]["num_bits"] for g in groups} == written
    weight_only = quantization_config(open_folder(quantized("rtn", "W3A16").folder), 8)["config_groups"].values()
    assert {g["input_activations"] for g in weight_only} == {None}


@pytest.mark.parametrize(
    ("recipe", "bits", "said"),
    [("s2q_vdit", "W4A6", "kronecker"), ("smoothquant", "W4A8", "channel_scale"), ("svdquant", "W4A4", "low_rank")],
)
def test_a_recipe_with_more_than_codes_is_refused_by_name_and_nothing_is_written(
    recipe: str, bits: str, said: str, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    source = open_folder(quantized(recipe, bits).folder)
    with pytest.raises(CheckpointError, match=f"{recipe} cannot be exported.*{said}.*dequantized"):
        write_compressed_tensors(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_docs_name_the_recipes_that_can_be_exported() -> None:
    from s2q.export.compressed_tensors import obstacles
    from s2q.quantization.schemes import scheme_spec
    from s2q.recipes import get_recipe

    def free(name: str) -> bool:
        recipe = get_recipe(name, "W4A8")
        return not any(obstacles(scheme_spec(scheme, 1920)) for scheme in (recipe.linear, recipe.modulation))

    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert f"exported: {', '.join(f'`{name}`' for name in RECIPES if free(name))}." in page
