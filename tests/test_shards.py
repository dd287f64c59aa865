"""Writing the weights of a model: the files of diffusers, a shard in memory at a time."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

from s2q.deferred import Deferred, held, made, stored
from s2q.shards import INDEX_NAME, PATTERN, SINGLE_NAME, weight_places, write_weights


def tensors(count: int = 12) -> dict[str, Tensor]:
    """Of a kilobyte each, some of other dtypes."""
    generator = torch.Generator().manual_seed(0)
    made = {f"blocks.{n}.weight": torch.randn(16, 16, generator=generator) for n in range(count)}
    return made | {
        "codes": torch.arange(256, dtype=torch.int32),
        "half": torch.randn(512, generator=generator).bfloat16(),
    }


def test_files_are_those_of_the_hub_library_byte_for_byte(tmp_path: Path) -> None:
    for size in ("10GB", 3072):
        ours, theirs = tmp_path / f"ours-{size}", tmp_path / f"theirs-{size}"
        ours.mkdir()
        theirs.mkdir()
        write_weights(held(tensors()), ours, max_shard_size=size)
        save_torch_state_dict(tensors(), theirs, filename_pattern=PATTERN, max_shard_size=size)
        names = sorted(path.name for path in theirs.iterdir())
        assert sorted(path.name for path in ours.iterdir()) == names
        assert len(names) == (1 if size == "10GB" else 6)
        for name in names:
            if name == INDEX_NAME:
                assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
            else:
                assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        assert set(weight_places(ours)) == set(tensors())


def test_one_shard_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []
    most = 0

    def make() -> Tensor:
        nonlocal most
        gc.collect()
        tensor = torch.zeros(16, 16)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(ref() is not None for ref in alive))
        return tensor

    like = torch.empty(16, 16, device="meta")
    write_weights({f"{n}": Deferred(like, make) for n in range(12)}, tmp_path, max_shard_size=3072)
    assert len(alive) == 12
    assert most <= 4, "three tensors of a shard, and the first of the next before the last are let go"


def test_tied_and_transposed_tensors_are_written_as_what_they_are(tmp_path: Path) -> None:
    one = torch.randn(4, 6)
    write_weights(held({"one": one, "tied": one, "transposed": one.t()}), tmp_path)
    read = load_file(tmp_path / SINGLE_NAME)
    assert all(torch.equal(read[name], one) for name in ("one", "tied"))
    assert torch.equal(read["transposed"], one.t())


def test_what_is_stored_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    write_weights(held(tensors()), tmp_path)
    path = tmp_path / SINGLE_NAME
    deferred = stored(path)
    assert {name: (t.like.shape, t.like.dtype) for name, t in deferred.items()} == {
        name: (t.shape, t.dtype) for name, t in tensors().items()
    }
    assert all(tensor.like.is_meta for tensor in deferred.values())
    read = made(deferred)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors().items())
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        deferred["codes"].make()
