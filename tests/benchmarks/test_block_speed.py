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
    seconds, timed = row["median_seconds"], (*blocks.PACKED, blocks.IN_INT8)
    assert set(row["ratios"]) == {f"{name}, over {kind}" for name in timed for kind in blocks.KINDS}
    for name in timed:
        expected = seconds["bfloat16"] / seconds[f"{name}, bfloat16"]
        assert row["ratios"][f"{name}, over bfloat16"] == pytest.approx(expected)


def test_every_linear_is_quantized_and_the_input_of_q_k_and_v_is_shared(blocks: ModuleType) -> None:
    block = blocks.block_of("demo", "s2q_plus W4A6", torch.float32)
    linears = [m for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 8
    assert all(isinstance(m, QuantLinear) for m in linears)
    assert block.attn1.to_q.shared_input is block.attn1.to_k.shared_input is block.attn1.to_v.shared_input is not None
    assert all(y.isfinite().all() for y in block(*blocks.inputs_of(block, "demo", 8, torch.float32)))


def test_int8_attention_is_on_while_its_row_is_timed_and_off_after(
    blocks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, computed = blocks.block_of("demo", None, torch.float32), []
    installed = blocks.int8_attention

    def watched(module: torch.nn.Module):
        made = installed(module)
        module.register_forward_hook(lambda *_: computed.append(made.computed))
        return made

    monkeypatch.setattr(blocks, "int8_attention", watched)
    blocks.call(block, blocks.inputs_of(block, "demo", 8, torch.float32), True)
    assert computed == [1]
    assert not hasattr(block, "_s2q_int8_attention")
