"""What is loaded beside a transformer is counted, with and without weights on disk."""

from pathlib import Path

import pytest
import torch
from tiny import without_weights

from s2q.companions import companion_bytes
from s2q.models.pipelines import open_pipeline


@pytest.mark.parametrize("family", ["cogvideox", "wan", "hunyuan_video", "ltx"])
def test_bytes_are_those_of_the_loaded_models(family: str, family_pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = family_pipelines[family]
    loaded = {
        name: sum(p.numel() * p.element_size() for p in model.parameters())
        for name, model in open_pipeline(str(folder)).pipe.components.items()
        if isinstance(model, torch.nn.Module) and name != "transformer"
    }
    bare = without_weights(folder, tmp_path / "bare")
    assert companion_bytes(folder, "transformer", torch.float32) == loaded
    assert companion_bytes(bare, "transformer", torch.bfloat16) == {name: size // 2 for name, size in loaded.items()}
