"""What the data say of a family agrees with what its model really does."""

import dataclasses

import pytest
import torch
from tiny import make_transformer
from tiny_families import TinyFamily, make_wan, make_wan_inputs
from torch import nn

from s2q.models import Family, register, resolve
from s2q.models.families import COGVIDEOX, WAN
from s2q.models.family import patch_of


@torch.no_grad()
def test_linears_are_grouped_by_the_tensor_they_really_receive(tiny_family: TinyFamily) -> None:
    model = tiny_family.make_transformer()
    family = resolve(model)
    for name, block in family.blocks(model):
        inputs: dict[str, torch.Tensor] = {}  # kept alive, so that no identity is given twice
        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name, into=inputs: into.update({name: args[0]}))
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]
        model(**tiny_family.make_inputs())
        for handle in handles:
            handle.remove()
        real: dict[int, set[str]] = {}
        for linear, tensor in inputs.items():
            real.setdefault(id(tensor), set()).add(linear)
        claimed = [set(group) for group in family.groups(block)]
        assert sorted(map(sorted, claimed)) == sorted(map(sorted, real.values())), name


@torch.no_grad()
def test_the_image_projections_of_wan_share_their_input() -> None:
    model = make_wan(image_dim=24, added_kv_proj_dim=32)
    attention, inputs = model.blocks[0].attn2, []
    for name in ("add_k_proj", "add_v_proj"):
        attention.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    # The pipeline pads the text to 512 tokens; what stands before them is the image.
    text = {"encoder_hidden_states": torch.randn(2, 512, 24), "encoder_hidden_states_image": torch.randn(2, 3, 24)}
    model(**make_wan_inputs() | text)
    assert inputs[0] is inputs[1]
    assert ("attn2.add_k_proj", "attn2.add_v_proj") in WAN.groups(model.blocks[0])


def test_every_linear_of_a_block_is_targeted_once_modulation_included(tiny_family: TinyFamily) -> None:
    model = tiny_family.make_transformer()
    family = resolve(model)
    for _, block in family.blocks(model):
        linears = sorted(name for name, module in block.named_modules() if isinstance(module, nn.Linear))
        assert sorted(name for group in family.groups(block) for name in group) == linears


@torch.no_grad()
def test_modulation_is_what_sees_one_vector_a_sample_and_text_linears_what_sees_text(tiny_family: TinyFamily) -> None:
    model, inputs = tiny_family.make_transformer(), tiny_family.make_inputs()
    family, text = resolve(model), inputs["encoder_hidden_states"].shape[1]
    for _, block in family.blocks(model):
        shapes: dict[str, torch.Size] = {}
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(
                    lambda _, args, name=name, into=shapes: into.update({name: args[0].shape})
                )
        if family.layout != "SC":
            # One latent frame, so that no number of video tokens is that of the text.
            axis = 1 + family.layout.index("F")
            inputs = inputs | {"hidden_states": inputs["hidden_states"].narrow(axis, 0, 1)}
        model(**inputs)
        for name, shape in shapes.items():
            assert family.is_modulation(name) == (len(shape) == 2), name
            assert family.sees_text_alone(name) == (len(shape) == 3 and shape[1] == text), name


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


def test_a_class_cannot_be_taken_over_by_another_family() -> None:
    assert register(COGVIDEOX) is COGVIDEOX, "registering the same twice is harmless"
    thief = dataclasses.replace(COGVIDEOX, name="thief")
    with pytest.raises(ValueError, match="cogvideox"):
        register(thief)
    assert resolve("CogVideoXTransformer3DModel") is COGVIDEOX


def test_a_new_family_is_a_few_lines_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2q.models.family._REGISTRY", {})
    mine = Family("mine", "MyPipeline", ("MyModel",), ("layers",), ("x",), ("x",), "attention")
    register(mine)
    assert resolve("MyModel") is mine


@pytest.mark.parametrize(
    ("config", "patch"),
    [
        ({"patch_size": 2}, (1, 2, 2)),
        ({"patch_size": 2, "patch_size_t": None}, (1, 2, 2)),
        ({"patch_size": 2, "patch_size_t": 4}, (4, 2, 2)),
        ({"patch_size": [1, 2, 3]}, (1, 2, 3)),
    ],
)
def test_patches_are_read_however_diffusers_writes_them(config: dict, patch: tuple[int, int, int]) -> None:
    assert patch_of(config) == patch
