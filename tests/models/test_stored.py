"""How weights are stored is told by files, else by an index, else by a configuration; never made up in silence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from s2q.models.stored import stored_bytes

STEM = "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def index(folder: Path, total: int | None) -> None:
    told = {"metadata": {} if total is None else {"total_size": total}, "weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))


def test_nothing_that_tells_is_said(folder: Path) -> None:
    assert stored_bytes(folder, STEM, 100) is None
    index(folder, None)
    assert stored_bytes(folder, STEM, 100) is None


@pytest.mark.parametrize(("key", "dtype", "expected"), [("torch_dtype", "float32", 4), ("dtype", "bfloat16", 2)])
def test_a_configuration_tells(key: str, dtype: str, expected: int, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({key: dtype}))
    assert stored_bytes(folder, STEM, 100) == expected


@pytest.mark.parametrize(("total", "expected"), [(400, 4), (210, 2), (390, 4)])
def test_an_index_tells_more_surely(total: int, expected: int, folder: Path) -> None:
    """A few tensors may be of another dtype."""
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float64"}))
    index(folder, total)
    assert stored_bytes(folder, STEM, 100) == expected


def test_the_first_floating_tensor_of_the_files_tells_most_surely(folder: Path) -> None:
    index(folder, 400)
    save_file(
        {"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(2, dtype=torch.bfloat16)},
        folder / "model-1.safetensors",
    )
    save_file({"a": torch.zeros(2)}, folder / "model.fp32.safetensors")
    assert stored_bytes(folder, STEM, 100) == 2
