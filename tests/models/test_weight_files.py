"""Which files hold a transformer's weights: a wrong answer is found out hours later, or never."""

import json
import shutil
from pathlib import Path

import pytest

from s2q.models.pipelines import PipelineError, locate, weight_files

SINGLE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def test_a_variant_beside_the_weights_is_not_counted_twice(folder: Path):
    transformer = folder / "transformer"
    shutil.copy(transformer / SINGLE, transformer / "diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(transformer) == [transformer / SINGLE]


def test_shards_are_those_of_the_index(tmp_path: Path):
    index = {"weight_map": {"a": "part-2.safetensors", "b": "part-1.safetensors", "c": "part-2.safetensors"}}
    (tmp_path / f"{SINGLE}.index.json").write_text(json.dumps(index))
    (tmp_path / "stray.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["part-1.safetensors", "part-2.safetensors"]


def test_a_transformer_in_another_format_is_refused_before_work_starts(folder: Path):
    (folder / "transformer" / SINGLE).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(PipelineError, match="safetensors"):
        locate(str(folder))
