"""LoRA files through the pipeline's own methods, and adapters beside compilation and placement."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel, DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from tiny import make_inputs
from torch import nn

from s2q.run import Quantized

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def folder(quantized: Callable[..., Quantized]) -> Path:
    return quantized().folder


@pytest.fixture
def pipe(folder: Path, tiny_pipeline: Path) -> CogVideoXPipeline:
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder).eval()
    return DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=transformer)


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(**make_inputs(), return_dict=False)[0]


def add_adapter(model: nn.Module, seed: int = 0) -> None:
    """An adapter that changes the output."""
    torch.manual_seed(seed)
    # A file without metadata is read with alpha = rank.
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False))
    model.eval()


@pytest.fixture
def lora_file(pipe: CogVideoXPipeline, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder with saved LoRA weights, and what the transformer says with them."""
    add_adapter(pipe.transformer)
    expected = output(pipe.transformer)
    CogVideoXPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipe.transformer))
    return tmp_path, expected


def test_a_saved_adapter_is_loaded_and_unloaded_to_the_bit(
    lora_file: tuple[Path, torch.Tensor], folder: Path, tiny_pipeline: Path
) -> None:
    saved, expected = lora_file
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder).eval()
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=transformer)
    before = output(pipe.transformer)
    pipe.load_lora_weights(saved)
    assert torch.allclose(output(pipe.transformer), expected, atol=1e-5)
    assert (expected - before).norm() > 0.01 * before.norm(), "the adapter does nothing: the test tests nothing"
    pipe.unload_lora_weights()
    assert torch.equal(output(pipe.transformer), before)


def test_an_adapter_can_be_weighed_switched_off_and_on(pipe: CogVideoXPipeline) -> None:
    before = output(pipe.transformer)
    add_adapter(pipe.transformer)
    full = output(pipe.transformer)
    pipe.transformer.disable_adapters()
    assert torch.equal(output(pipe.transformer), before)
    pipe.transformer.enable_adapters()
    assert torch.equal(output(pipe.transformer), full)
    pipe.transformer.set_adapters("default", 0.0)
    assert torch.allclose(output(pipe.transformer), before, atol=1e-6)


def test_an_adapter_made_on_the_float_model_serves_the_quantized_one(
    pipe: CogVideoXPipeline, tiny_pipeline: Path, tmp_path: Path
) -> None:
    plain = DiffusionPipeline.from_pretrained(tiny_pipeline)
    add_adapter(plain.transformer, seed=3)
    with_float = output(plain.transformer)
    CogVideoXPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(plain.transformer))
    without = output(pipe.transformer)
    pipe.load_lora_weights(tmp_path)
    assert (output(pipe.transformer) - with_float).norm() < 0.5 * (without - with_float).norm()


def test_a_model_with_an_adapter_compiles_without_a_graph_break(pipe: CogVideoXPipeline) -> None:
    add_adapter(pipe.transformer)
    compiled = torch.compile(pipe.transformer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(output(compiled), output(pipe.transformer), rtol=1e-4, atol=1e-5)


def test_an_adapter_is_loaded_onto_a_transformer_with_a_device_map(
    lora_file: tuple[Path, torch.Tensor], folder: Path, tiny_pipeline: Path
) -> None:
    saved, expected = lora_file
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder, device_map="cpu").eval()
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=transformer)
    pipe.load_lora_weights(saved)
    assert torch.allclose(output(pipe.transformer), expected, atol=1e-5)
