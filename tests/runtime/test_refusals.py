"""What packed weights cannot do ends in one clear error, and the model is what it was."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline
from diffusers.hooks import apply_layerwise_casting
from peft import LoraConfig
from tiny import make_inputs, make_transformer
from torch import nn

from s2q.runtime.linear import QuantLinear
from s2q.runtime.refusals import REFUSED, UnsupportedError


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(**make_inputs(), return_dict=False)[0]


def packed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
        for key, tensor in module.packed_tensors().items()
    }


@pytest.mark.parametrize("name", REFUSED)
def test_fusing_is_refused_with_what_to_do_and_changes_nothing(name: str, model: nn.Module) -> None:
    before = output(model)
    with pytest.raises(UnsupportedError, match=r"s2q quantized.*(dequantize|already)"):
        getattr(model, name)()
    assert torch.equal(output(model), before)


def test_the_pipelines_own_fusing_meets_the_same_refusal(tiny_pipeline: Path, model: nn.Module) -> None:
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    before = output(model)
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=model)
    with pytest.raises(UnsupportedError, match="Leave it attached"):
        pipe.fuse_lora(components=["transformer"])
    with pytest.raises(UnsupportedError, match="cannot be joined"):
        pipe.fuse_qkv_projections()
    assert torch.equal(output(model), before)


def test_a_copy_refuses_as_well_and_a_float_model_does_not(model: nn.Module) -> None:
    with pytest.raises(UnsupportedError):
        copy.deepcopy(model).fuse_qkv_projections()
    make_transformer().fuse_qkv_projections()


def test_after_dequantize_everything_can_be_fused(model: nn.Module) -> None:
    model.dequantize()
    before = output(model)
    model.fuse_qkv_projections()
    assert torch.allclose(output(model), before, atol=1e-5)


def test_dequantize_with_an_adapter_attached_is_refused_and_loses_nothing(model: nn.Module) -> None:
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    before = output(model)
    with pytest.raises(UnsupportedError, match=r"to_q.*remove them first"):
        model.dequantize()
    assert torch.equal(output(model), before)


def test_a_dequantized_model_is_saved_as_a_plain_one(model: nn.Module, tmp_path: Path) -> None:
    model.dequantize()
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    assert not getattr(again, "is_quantized", False)
    assert torch.equal(output(again.eval()), output(model))


@pytest.mark.parametrize("everything", [False, True])
def test_layerwise_casting_leaves_packed_layers_as_they_are(everything: bool, model: nn.Module) -> None:
    # diffusers' own patterns skip norms and embeddings; its function skips nothing.
    before, result = packed(model), output(model)
    biases = {name: p.clone() for name, p in model.named_parameters() if name.endswith("to_q.bias")}
    if everything:
        apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32)
    else:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    changed = output(model)
    for name, tensor in packed(model).items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
    for name, bias in biases.items():
        assert torch.equal(model.get_parameter(name), bias), name
    assert model.time_embedding.linear_1.weight.dtype == torch.float8_e4m3fn, "nothing was cast: the test tests nothing"
    assert (changed - result).norm() < 0.2 * result.norm()


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_casting_one_block_keeps_its_scales(cast: Callable, model: nn.Module) -> None:
    before = packed(model)
    cast(model.transformer_blocks[0])
    for name, tensor in packed(model).items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name
    assert model.transformer_blocks[0].attn1.to_q.bias.dtype != torch.float32, "the bias follows the model"
