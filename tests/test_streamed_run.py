"""Quantizing from disk, block by block, writes the same bytes as quantizing from memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import PROMPTS, cheap, folder_bytes
from tiny_families import FAMILIES

from s2q.models.pipelines import OpenPipeline
from s2q.run import quantize


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("change", ["optim.propagate_error=false", "optim.propagate_error=true"])
def test_streamed_and_from_memory_alike(
    name: str, change: str, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    recipe = cheap("s2q_vdit", "W4A6", change)
    streamed = open_family(name, stream=True)
    streamed.disposable_text = True
    quantize(open_family(name), recipe, tmp_path / "memory", prompts=PROMPTS)
    quantize(streamed, recipe, tmp_path / "disk", prompts=PROMPTS)
    assert folder_bytes(tmp_path / "disk") == folder_bytes(tmp_path / "memory")
    assert all(getattr(streamed.pipe, part, None) is None for part in ("text_encoder", "text_encoder_2"))
    assert not list((tmp_path / "disk.work").glob("hidden*")), "hidden states are left on disk"


def test_a_recipe_without_samples_needs_the_transformer_alone(
    open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    quantize(open_family("wan"), cheap("rtn", "W4A6"), tmp_path / "whole")
    alone = open_family("wan", stream=True, transformer_alone=True)
    quantize(alone, cheap("rtn", "W4A6"), tmp_path / "alone")
    assert folder_bytes(tmp_path / "alone") == folder_bytes(tmp_path / "whole")
