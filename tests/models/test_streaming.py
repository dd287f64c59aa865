"""A streamed transformer gives the same bits as one in memory, and never has two blocks there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES
from torch import nn

from s2q.models.pipelines import OpenPipeline, PipelineError, load_transformer, open_pipeline, weight_files
from s2q.models.streaming import open_streamed, should_stream
from s2q.twins import generate

WEIGHTS = Path("transformer/diffusion_pytorch_model.safetensors")


def in_memory(block: nn.Module) -> bool:
    return not any(tensor.is_meta for tensor in block.state_dict(keep_vars=True).values())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_diffusers_reads(
    name: str, dtype: torch.dtype, family_pipelines: dict[str, Path], open_family: Callable[..., OpenPipeline]
) -> None:
    folder = family_pipelines[name] / "transformer"
    whole = load_transformer(folder, dtype)
    streamed, stream = open_streamed(folder, weight_files(folder), dtype, "cpu")
    blocks = FAMILIES[name] and open_family(name).family.blocks(streamed)
    found = {key: tensor.clone() for key, tensor in streamed.state_dict().items() if not tensor.is_meta}
    for prefix, block in blocks:
        with stream.held(block):
            found |= {f"{prefix}.{key}": tensor.clone() for key, tensor in block.state_dict().items()}
    expected = whole.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key
    for (key, buffer), (_, other) in zip(whole.named_buffers(), streamed.named_buffers(), strict=True):
        assert torch.equal(buffer, other), key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clip_is_the_same_and_one_block_at_a_time_is_in_memory(
    name: str, open_family: Callable[..., OpenPipeline]
) -> None:
    opened = open_family(name, stream=True)
    blocks = [block for _, block in opened.family.blocks(opened.pipe.transformer)]
    most = []
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: most.append(sum(map(in_memory, blocks))))
    clip = generate(opened, "a red square moves left on a grey background", 0)
    assert (clip == generate(open_family(name), "a red square moves left on a grey background", 0)).all()
    assert set(most) == {1}
    assert not any(map(in_memory, blocks))


def test_a_held_block_is_read_once_and_a_failing_one_is_dropped(open_family: Callable[..., OpenPipeline]) -> None:
    opened = open_family("wan", stream=True)
    (_, first), *_ = opened.family.blocks(opened.pipe.transformer)
    with opened.held(first):
        weight = first.attn1.to_q.weight
        with opened.held(first):
            pass
        assert first.attn1.to_q.weight is weight
        assert in_memory(first)
    with pytest.raises(TypeError):
        first()
    assert not in_memory(first)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="wants Linux's list of what is mapped")
def test_no_file_stays_mapped(broken: Path) -> None:
    """What is mapped counts as memory, as far as it was read, and its shards are larger than any block."""
    folder = broken / "transformer"
    dtype = load_file(broken / WEIGHTS)["patch_embedding.weight"].dtype
    streamed, stream = open_streamed(folder, weight_files(folder), dtype, "cpu")
    with stream.held(streamed.blocks[0]):
        assert str(folder) not in Path("/proc/self/maps").read_text()


@pytest.fixture
def broken(family_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family_pipelines["wan"], tmp_path / "pipeline"))


def test_a_missing_tensor_is_named_before_anything_runs(broken: Path) -> None:
    tensors = load_file(broken / WEIGHTS)
    del tensors["blocks.1.attn1.to_q.weight"]
    save_file(tensors, broken / WEIGHTS)
    with pytest.raises(PipelineError, match=r"blocks\.1\.attn1\.to_q\.weight"):
        open_pipeline(str(broken), stream=True)


def test_weights_of_another_shape_are_named(broken: Path) -> None:
    tensors = load_file(broken / WEIGHTS)
    tensors["patch_embedding.bias"] = torch.zeros(3)
    save_file(tensors, broken / WEIGHTS)
    with pytest.raises(PipelineError, match=r"patch_embedding\.bias has shape \[3\] on disk, expected \[32\]"):
        open_pipeline(str(broken), stream=True)


def test_a_file_cut_short_is_named(broken: Path) -> None:
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(PipelineError, match=r"diffusion_pytorch_model\.safetensors is damaged or cut short"):
        open_pipeline(str(broken), stream=True)


def test_shards_are_read_from_where_they_stand(broken: Path) -> None:
    tensors = load_file(broken / WEIGHTS)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, broken / "transformer" / file)
    (broken / WEIGHTS).unlink()
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (broken / "transformer" / f"{WEIGHTS.name}.index.json").write_text(json.dumps(index))
    opened = open_pipeline(str(broken), stream=True)
    _, block = opened.family.blocks(opened.pipe.transformer)[1]
    with opened.held(block):
        assert torch.equal(block.attn1.to_q.weight, tensors["blocks.1.attn1.to_q.weight"])


def test_only_what_would_crowd_the_memory_is_streamed(family_pipelines: dict[str, Path]) -> None:
    files = weight_files(family_pipelines["wan"] / "transformer")
    elements = sum(tensor.numel() for file in files for tensor in load_file(file).values())
    assert should_stream(files, torch.float32, 10 * elements - 1)
    assert not should_stream(files, torch.float32, 10 * elements)
    assert not should_stream(files, torch.bfloat16, 10 * elements - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_text_encoders_and_vae_the_transformer_is_there(
    name: str, open_family: Callable[..., OpenPipeline]
) -> None:
    components = open_family(name, transformer_alone=True).pipe.components
    assert {part for part, component in components.items() if isinstance(component, nn.Module)} == {"transformer"}
