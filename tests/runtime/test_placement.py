"""Device maps, offloading and parallel loading move packed weights without changing a bit of the output."""

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from tiny import CALL, PROMPTS, make_inputs, tampered
from torch import nn

from s2q.checkpoint import CheckpointError
from s2q.run import Quantized
from s2q.runtime.linear import QuantLinear

CPU = torch.device("cpu")
BLOCK = "transformer_blocks.1"


@pytest.fixture
def folder(quantized: Callable[..., Quantized]) -> Path:
    return quantized().folder


@torch.no_grad()
def output(model: nn.Module) -> torch.Tensor:
    return model(**make_inputs(), return_dict=False)[0]


def load(folder: Path, **settings) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel.from_pretrained(folder, **settings).eval()


@pytest.fixture
def expected(folder: Path) -> torch.Tensor:
    return output(load(folder))


def on_disk(folder: Path) -> dict[str, str]:
    """Every part of the model on the CPU but one block."""
    model = load(folder)
    parts = {name: "cpu" for name, _ in model.named_children() if name != "transformer_blocks"}
    return parts | {"transformer_blocks.0": "cpu", BLOCK: "disk"}


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_changes_nothing(device_map, folder: Path, expected: torch.Tensor) -> None:
    assert torch.equal(output(load(folder, device_map=device_map)), expected)


def test_a_block_on_disk_is_really_there_and_changes_nothing(
    folder: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    model = load(folder, device_map=on_disk(folder), offload_folder=tmp_path)
    linear = model.get_submodule(f"{BLOCK}.attn1.to_q")
    assert all(tensor.is_meta for tensor in linear.packed_tensors().values())
    assert torch.equal(output(model), expected)
    assert all(tensor.is_meta for tensor in linear.packed_tensors().values()), "it went back after the call"


def test_sequential_offload_moves_every_packed_tensor(folder: Path, expected: torch.Tensor) -> None:
    model = accelerate.cpu_offload(load(folder), execution_device=CPU)
    packed = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert all(p.is_meta for module in packed for p in module.parameters())
    assert torch.equal(output(model), expected)


def test_model_offload_of_the_whole_module(folder: Path, expected: torch.Tensor) -> None:
    model, hook = accelerate.cpu_offload_with_hook(load(folder), execution_device=CPU)
    assert torch.equal(output(model), expected)
    hook.offload()
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize(("kind", "disk"), [("block_level", False), ("leaf_level", False), ("block_level", True)])
def test_group_offload(kind: str, disk: bool, folder: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    model = load(folder)
    apply_group_offloading(
        model,
        onload_device=CPU,
        offload_device=CPU,
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=str(tmp_path) if disk else None,
    )
    assert torch.equal(output(model), expected)
    assert torch.equal(output(model), expected), "the second call differs"
    assert not disk or any(tmp_path.iterdir())


def test_a_pipeline_with_a_group_offloaded_transformer_makes_the_same_video(folder: Path, tiny_pipeline: Path) -> None:
    def frames(model: nn.Module):
        pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=model)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPTS[0], max_sequence_length=8, output_type="pt", generator=generator, **CALL).frames

    offloaded = load(folder)
    offloaded.enable_group_offload(onload_device=CPU, offload_type="leaf_level")
    assert torch.equal(frames(offloaded), frames(load(folder)))


def test_shards_loaded_in_parallel_are_the_same(
    folder: Path, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    monkeypatch.setenv("HF_ENABLE_PARALLEL_LOADING", "yes")
    assert torch.equal(output(load(tmp_path)), expected)


def test_damage_in_a_block_that_stays_in_memory_is_seen_beside_one_on_disk(folder: Path, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer_blocks.0.attn1.to_q.weight_packed"][0, 0] ^= 1

    hostile = tampered(folder, tmp_path / "hostile", tensors=damage)
    with pytest.raises(CheckpointError, match="checksum"):
        load(hostile, device_map=on_disk(folder), offload_folder=tmp_path / "disk")
