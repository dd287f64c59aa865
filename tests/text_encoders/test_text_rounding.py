"""Rounding a text encoder block by block from disk gives the bits of doing it plainly in memory."""

from pathlib import Path

import pytest
import torch
from tiny_encoders import ENCODERS, IDS, MASK, encode, make_encoder, with_encoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from s2q.numerics.gptq import accumulate_hessian, hessian_factor
from s2q.numerics.packing import unpack
from s2q.numerics.quantizer import affine_grid, dequantize, quantize
from s2q.progress import NoProgress
from s2q.recipe import LinearScheme
from s2q.runtime.linear import QuantLinear
from s2q.text_encoders.calibration import Tokens
from s2q.text_encoders.opening import TextEncoder, block_linears, block_list, open_text_encoder
from s2q.text_encoders.quantize import text_recipe
from s2q.text_encoders.rounding import ROWS, packed_linear, quantize_blocks

TOKENS = Tokens(IDS, MASK)


def scheme(recipe: str) -> LinearScheme:
    return text_recipe(recipe, "W4A16", ["linear.group_size=8"]).linear


def opened(pipeline: Path, kind: str, folder: Path) -> TextEncoder:
    source = with_encoder(pipeline, kind, folder / "pipeline")
    encoder = open_text_encoder(source, "text_encoder", "cpu", folder)
    assert all(p.is_meta for _, block in encoder.blocks for p in block.parameters()), "blocks are in memory"
    return encoder


def inputs_of(model: PreTrainedModel, linears: list[nn.Linear]) -> dict[nn.Linear, Tensor]:
    """What each linear receives in a plain forward, tokens that the mask shows, [M, K]."""
    seen: dict[nn.Linear, Tensor] = {}
    handles = [
        linear.register_forward_pre_hook(lambda module, args: seen.update({module: args[0][MASK.bool()]}))
        for linear in linears
    ]
    encode(model)
    for handle in handles:
        handle.remove()
    return seen


def plainly_rounded(kind: str) -> PreTrainedModel:
    """GPTQ with everything in memory: the whole encoder is run anew for each block."""
    model = make_encoder(kind)
    for block in model.get_submodule(block_list(model)):
        inputs = inputs_of(model, [linear for _, linear in block_linears(block)])
        for name, linear in block_linears(block):
            hessian = torch.zeros(linear.in_features, linear.in_features)
            accumulate_hessian(hessian, inputs[linear])
            block.set_submodule(name, packed_linear(linear, scheme("gptq"), hessian_factor(hessian)))
    return model


@pytest.mark.parametrize("kind", ENCODERS)
def test_gptq_in_one_pass_from_disk_is_gptq_in_memory(kind: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    encoder, expected = opened(tiny_pipeline, kind, tmp_path), plainly_rounded(kind)
    names = encoder.linears()
    quantize_blocks(encoder, scheme("gptq"), TOKENS, NoProgress())
    for name in names:
        one, other = encoder.model.get_submodule(name), expected.get_submodule(name)
        assert isinstance(one, QuantLinear)
        assert all(torch.equal(tensor, other.packed_tensors()[key]) for key, tensor in one.packed_tensors().items())
    nearest = opened(tiny_pipeline, kind, tmp_path / "nearest")
    quantize_blocks(nearest, scheme("rtn"), None, NoProgress())
    plain = encode(make_encoder(kind))
    assert (encode(encoder.model) - plain).norm() < (encode(nearest.model) - plain).norm()


def test_rounding_to_nearest_needs_no_tokens_and_rounds_every_weight(tiny_pipeline: Path, tmp_path: Path) -> None:
    encoder = opened(tiny_pipeline, "umt5", tmp_path)
    names = encoder.linears()
    quantize_blocks(encoder, scheme("rtn"), None, NoProgress())
    for name in names:
        weight, packed = make_encoder("umt5").get_submodule(name).weight.detach(), encoder.model.get_submodule(name)
        scale, zero = affine_grid(weight, 4, groups=weight.shape[1] // 8)
        assert torch.allclose(packed.weight_scale, scale)
        codes = quantize(weight.double(), packed.weight_scale.double(), 4, zero.double())
        assert torch.equal(unpack(packed.weight_packed, 4, weight.shape[1]), codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_some_rows_at_a_time_is_rounding_them_together(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 2 * ROWS + 5)
    packed = packed_linear(linear, text_recipe("rtn", f"W{bits}A16", ["linear.group_size=8"]).linear, None)
    scale, zero = affine_grid(linear.weight.detach().double(), bits, groups=3)
    scale = scale.float()
    expected = dequantize(quantize(linear.weight.detach().double(), scale.double(), bits, zero), scale, zero.float())
    assert torch.equal(packed.dequantize().weight, expected)
    assert torch.equal(packed.bias, linear.bias)
    assert packed.weight_shape.tolist() == [2 * ROWS + 5, 24]


def test_a_block_that_never_runs_is_an_error(tiny_pipeline: Path, tmp_path: Path) -> None:
    encoder = opened(tiny_pipeline, "llama", tmp_path)
    encoder.model.layers = encoder.model.layers[:1]
    with pytest.raises(ValueError, match="did not run all"):
        quantize_blocks(encoder, scheme("gptq"), TOKENS, NoProgress())


def test_tokens_that_the_mask_hides_change_nothing(tiny_pipeline: Path, tmp_path: Path) -> None:
    made = []
    for index, hidden in enumerate((0, 7)):
        ids = IDS.clone()
        ids[1, 4] = hidden
        encoder = opened(tiny_pipeline, "t5", tmp_path / str(index))
        quantize_blocks(encoder, scheme("gptq"), Tokens(ids, MASK), NoProgress())
        made.append(encoder.model.get_submodule("encoder.block.1.layer.1.DenseReluDense.wo").weight_packed)
    assert torch.equal(*made)
