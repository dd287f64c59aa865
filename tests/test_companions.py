"""What is loaded beside a transformer is counted, with and without weights on disk."""

import json
from pathlib import Path

import pytest
import torch
from tiny import without_weights
from tiny_pipelines import PIPELINES, with_stand_ins

from s2q.companions import companion_bytes
from s2q.models.pipelines import open_pipeline


@pytest.mark.parametrize("name", ["cogvideox-1.5", "hunyuan-1.5", "ltx2", "skyreels-v2"])
def test_bytes_are_those_of_the_loaded_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PIPELINES[name].save(tmp_path / name)
    with_stand_ins(json.loads((folder / "model_index.json").read_text())["_class_name"], monkeypatch)
    loaded = {
        name: sum(p.numel() * p.element_size() for p in model.parameters())
        for name, model in open_pipeline(str(folder)).pipe.components.items()
        if isinstance(model, torch.nn.Module) and name != "transformer"
    }
    bare = without_weights(folder, tmp_path / "bare")
    assert companion_bytes(folder, "transformer", torch.float32) == loaded
    assert companion_bytes(bare, "transformer", torch.bfloat16) == {name: size // 2 for name, size in loaded.items()}
