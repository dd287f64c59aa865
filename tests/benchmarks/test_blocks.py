"""The block that is timed is the one it says: every linear quantized, q, k and v sharing their input."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from s2q.runtime.linear import QuantLinear


@pytest.fixture
def blocks(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("blocks")


def test_a_row_has_every_candidate_and_the_ratios_of_its_seconds(blocks: ModuleType) -> None:
    row = blocks.measure("demo", 8, 1)
    seconds = row["median_seconds"]
    assert set(row["ratios"]) == {f"{scheme}, over {kind}" for scheme in blocks.TIMED for kind in blocks.KINDS}
    for scheme in blocks.TIMED:
        expected = seconds["bfloat16"] / seconds[f"{scheme}, bfloat16"]
        assert row["ratios"][f"{scheme}, over bfloat16"] == pytest.approx(expected)


def test_every_linear_is_quantized_and_the_input_of_q_k_and_v_is_shared(blocks: ModuleType) -> None:
    block = blocks.quantize_block(blocks.block_of("demo"), "transform and groups")
    linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 8
    assert all(isinstance(m, QuantLinear) for m in linears)
    assert block.attn1.to_q.shared_input is block.attn1.to_k.shared_input is block.attn1.to_v.shared_input
    assert all(y.isfinite().all() for y in block(*blocks.inputs_of("demo", 8, torch.float32)))
