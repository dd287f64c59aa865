"""Dtypes of a loaded model, compilation of blocks, gradient checkpointing, and quantization by pipeline configuration."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline, PipelineQuantizationConfig, WanTransformer3DModel
from tiny import PROMPTS, cheap, make_inputs
from tiny_families import FAMILIES
from torch import nn

from s2q.checkpoint import CheckpointError
from s2q.models.pipelines import open_pipeline
from s2q.run import Quantized, quantize
from s2q.runtime.diffusers import S2QConfig
from s2q.runtime.linear import QuantLinear


@pytest.fixture(scope="module")
def wan_folder(family_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan transformer: diffusers keeps some of its parts in float32."""
    opened = open_pipeline(str(family_pipelines["wan"]), **FAMILIES["wan"].call)
    return quantize(opened, cheap("rtn", "W4A6"), tmp_path_factory.mktemp("wan") / "out", prompts=PROMPTS).folder


@pytest.fixture
def model(quantized: Callable[..., Quantized]) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel.from_pretrained(quantized().folder).eval()


@torch.no_grad()
def call(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def wan_inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = FAMILIES["wan"].make_inputs()
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in made.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_diffusers_keeps_in_float32_stays_there(dtype: torch.dtype, wan_folder: Path) -> None:
    half = WanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype)
    kept = [(n, p) for n, p in half.named_parameters() if "scale_shift_table" in n or "time_embedder" in n]
    assert kept
    assert all(p.dtype == torch.float32 for _, p in kept)
    assert half.dtype == dtype
    assert half.patch_embedding.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_answers_in_it_and_close_to_float32(dtype: torch.dtype, wan_folder: Path) -> None:
    exact = call(WanTransformer3DModel.from_pretrained(wan_folder).eval(), wan_inputs())
    half = call(WanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=dtype).eval(), wan_inputs(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).norm() < 0.05 * exact.norm()


def test_dequantized_in_half_precision_every_linear_has_one_dtype(wan_folder: Path) -> None:
    half = WanTransformer3DModel.from_pretrained(wan_folder, torch_dtype=torch.bfloat16).eval()
    before = call(half, wan_inputs(torch.bfloat16))
    half.dequantize()
    blocks = [m for name, m in half.named_modules() if name.startswith("blocks.") and isinstance(m, nn.Linear)]
    assert {m.weight.dtype for m in blocks} == {torch.bfloat16}
    assert (call(half, wan_inputs(torch.bfloat16)) - before).norm() < 0.2 * before.norm()


def test_repeated_blocks_compile_without_a_graph_break(wan_folder: Path) -> None:
    model = WanTransformer3DModel.from_pretrained(wan_folder).eval()
    expected = call(model, wan_inputs())
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    assert torch.allclose(call(model, wan_inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["svdquant", "s2q_plus"])
def test_branches_and_groups_compile_without_a_graph_break(recipe: str, quantized: Callable[..., Quantized]) -> None:
    model = CogVideoXTransformer3DModel.from_pretrained(quantized(recipe, "W4A4").folder).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(call(compiled, make_inputs()), call(model, make_inputs()), rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(model: nn.Module) -> None:
    def gradient() -> torch.Tensor:
        inputs = make_inputs()
        inputs["hidden_states"].requires_grad_()
        model(**inputs, return_dict=False)[0].square().sum().backward()
        return inputs["hidden_states"].grad

    plain = gradient()
    model.train().enable_gradient_checkpointing()
    assert plain.any()
    assert torch.allclose(gradient(), plain, rtol=1e-4, atol=1e-5)


def test_packed_weights_cannot_be_asked_to_train(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="floating point"):
        model.transformer_blocks[0].attn1.to_q.requires_grad_(True)
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_pipeline_configuration_takes_ours_and_ends_at_the_same_transformer(
    model: nn.Module, tiny_pipeline: Path, tmp_path: Path
) -> None:
    DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=model).save_pretrained(tmp_path)
    ours = S2QConfig(**model.config.quantization_config.spec.model_dump(mode="json"))
    chosen = PipelineQuantizationConfig(quant_mapping={"transformer": ours})
    again = DiffusionPipeline.from_pretrained(tmp_path, quantization_config=chosen).transformer.eval()
    assert torch.equal(call(again, make_inputs()), call(model, make_inputs()))
    assert any(isinstance(module, QuantLinear) for module in again.modules())


def test_a_float_pipeline_cannot_be_quantized_on_the_fly_and_says_so(model: nn.Module, tiny_pipeline: Path) -> None:
    ours = S2QConfig(**model.config.quantization_config.spec.model_dump(mode="json"))
    with pytest.raises(ValueError, match="pre-quantized"):
        diffusers.CogVideoXTransformer3DModel.from_pretrained(
            tiny_pipeline, subfolder="transformer", quantization_config=ours
        )


def test_a_configuration_of_nothing_says_that_s2q_does_not_quantize_on_the_fly() -> None:
    with pytest.raises(CheckpointError, match=r"cannot quantize while it loads.*s2q\.quantize"):
        S2QConfig()
    with pytest.raises(
        CheckpointError, match=r"^quantization_config is not valid: recipe: Field required; bits[^\n]*$"
    ):
        S2QConfig(format_version=3)


def test_the_footprint_is_that_of_the_tensors(model: nn.Module) -> None:
    counted = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert model.get_memory_footprint() == counted
