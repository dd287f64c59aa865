"""The scripts that time int8 attention and measure its error: that they compare what they say, not what they find."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import make_transformer

from s2q.models.pipelines import OpenPipeline
from s2q.runtime.attention import int8_attention
from s2q.runtime.native import attention as native


@pytest.mark.skipif(not native.instruction_sets(), reason="s2q was installed without a C compiler")
def test_speed_writes_a_row_a_shape(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, threads = tmp_path / "speed.json", torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["x", "--tokens", "40", "--repeats", "1", "--results", str(results)])
    try:
        script("attention_speed").main()
    finally:
        torch.set_num_threads(threads)
    written = json.loads(results.read_text())
    shapes = [(row["heads"], row["width"], row["tokens"]) for row in written["rows"]]
    assert shapes == [(30, 64, 40), (12, 128, 40), (5, 32, 40)]
    assert all(ratio > 0 for row in written["rows"] for ratio in row["ratios"].values())


def test_error_is_zero_for_the_same_attention_and_not_for_int8(
    script: Callable[[str], ModuleType], opened: OpenPipeline
) -> None:
    lost, model = script("attention_error").lost, make_transformer()
    model.load_state_dict(opened.transformer.state_dict())
    same = lost(opened, model, ["a red square moves left"], 0)
    assert same["latent_relative_mse"] == 0
    assert same["attention"]["kind"] == "float"
    with int8_attention(model):
        other = lost(opened, model, ["a red square moves left"], 0)
    assert 0 < other["latent_relative_mse"] < 0.01
    assert other["attention"]["kind"] == "int8"
