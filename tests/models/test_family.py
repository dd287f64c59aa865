"""What the data say of a family agrees with what its model really does."""

import dataclasses

import pytest
import torch
from tiny import make_inputs, make_transformer
from torch import nn

from s2q.models import Family, register, resolve
from s2q.models.families import COGVIDEOX


def test_linears_are_grouped_by_the_tensor_they_really_receive(transformer: nn.Module) -> None:
    block = transformer.transformer_blocks[0]
    inputs: dict[str, torch.Tensor] = {}  # kept alive, so that no identity is given twice
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad():
        transformer(**make_inputs())
    real: dict[int, set[str]] = {}
    for name, tensor in inputs.items():
        real.setdefault(id(tensor), set()).add(name)
    claimed = [set(group) for group in COGVIDEOX.groups(block)]
    assert sorted(map(sorted, claimed)) == sorted(map(sorted, real.values()))


def test_every_linear_of_a_block_is_targeted_once_modulation_included(transformer: nn.Module) -> None:
    block = transformer.transformer_blocks[0]
    linears = sorted(name for name, module in block.named_modules() if isinstance(module, nn.Linear))
    grouped = sorted(name for group in COGVIDEOX.groups(block) for name in group)
    assert grouped == linears
    assert {"norm1.linear", "norm2.linear"} <= set(grouped)


def test_modulation_is_what_makes_shifts_from_the_timestep(transformer: nn.Module) -> None:
    linears = [n for n, m in transformer.transformer_blocks[0].named_modules() if isinstance(m, nn.Linear)]
    assert [name for name in linears if COGVIDEOX.is_modulation(name)] == ["norm1.linear", "norm2.linear"]


def test_kept_linears_leave_the_rest_of_their_group_together(transformer: nn.Module) -> None:
    groups = COGVIDEOX.groups(transformer.transformer_blocks[0], ("attn1.to_k", "norm*.linear"))
    assert ("attn1.to_q", "attn1.to_v") in groups
    named = {name for group in groups for name in group}
    assert not named & {"attn1.to_k", "norm1.linear", "norm2.linear"}


def test_blocks_come_in_the_order_they_run() -> None:
    model = make_transformer(num_layers=3)
    assert [name for name, _ in COGVIDEOX.blocks(model)] == [f"transformer_blocks.{index}" for index in range(3)]
    assert all(model.get_submodule(name) is block for name, block in COGVIDEOX.blocks(model))


def test_an_unknown_model_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ValueError, match="CogVideoXTransformer3DModel"):
        resolve(nn.Linear(2, 2))


def test_a_class_cannot_be_taken_over_by_another_family() -> None:
    assert register(COGVIDEOX) is COGVIDEOX, "registering the same twice is harmless"
    thief = dataclasses.replace(COGVIDEOX, name="thief")
    with pytest.raises(ValueError, match="cogvideox"):
        register(thief)
    assert resolve("CogVideoXTransformer3DModel") is COGVIDEOX


def test_a_new_family_is_a_few_lines_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2q.models.family._REGISTRY", {})
    mine = Family("mine", ("MyModel",), ("layers",), ("x",), ("x",), "attention")
    register(mine)
    assert resolve("MyModel") is mine
