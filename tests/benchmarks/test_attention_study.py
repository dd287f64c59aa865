"""The study of attention on the tiny pipeline: what it counts and draws, not what it finds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from tiny import PROMPTS, TEXT_LENGTH

from s2q.models.pipelines import OpenPipeline
from s2q.quantization.tokens import received_by_block


@pytest.fixture
def attention(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("attention")


def test_shares_of_known_attention(attention: ModuleType) -> None:
    received = torch.tensor([5.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    shares = attention.shares(received, slice(0, 10))
    assert shares == pytest.approx({"top_tenth": 8 / 26, "top_tenth_of_video": 3 / 12, "text": 14 / 26})
    assert attention.shares(received, slice(0, 0))["text"] == 0
    assert attention.top_share(torch.ones(50)) == pytest.approx(0.1)


@torch.no_grad()
def test_maps_and_received_attention_are_of_the_same_thing(attention: ModuleType, opened: OpenPipeline) -> None:
    call = attention.calls_of(opened, PROMPTS[0], 0)[1]
    model, heads = opened.pipe.transformer, opened.pipe.transformer.config.num_attention_heads
    with attention.MapTap(model, opened.family) as tap:
        model(**call)
    assert attention.text_tokens(opened, call) == slice(0, TEXT_LENGTH)
    for block, sums in enumerate(received_by_block(model, opened.family, call)):
        assert tap.tokens == sums.shape[1]
        torch.testing.assert_close(tap.maps[block].sum(0) * heads, sums[-1], rtol=1e-4, atol=1e-4)


def test_the_command_writes_table_json_and_picture(
    attention: ModuleType, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    results, image = tmp_path / "new" / "attention.json", tmp_path / "new" / "attention.png"
    options = ["--pipeline", tiny_pipeline, "--prompts", 1, "--steps", 2, "--results", results, "--image", image]
    monkeypatch.setattr(sys, "argv", ["attention.py", *map(str, options)])
    attention.main()
    table = capsys.readouterr().out.strip().splitlines()
    written = json.loads(results.read_text())
    assert len(table) == 2 + len(written["blocks"]) == 2 + 2 * 2  # two blocks, two branches
    for line in written["blocks"]:
        assert line["text_tokens"] == TEXT_LENGTH
        for kind in attention.KINDS:
            assert len(line[kind]["by_step"]) == 2
            assert 0 < line[kind]["least"] <= line[kind]["mean"] <= line[kind]["most"] <= 1
    assert Image.open(image).size[0] > 500
