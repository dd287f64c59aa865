"""A transformer taken apart and replayed block by block gives what it gives as a whole."""

import pytest
import torch
from tiny import make_inputs, make_transformer
from tiny_families import make_hunyuan, make_hunyuan_inputs, make_wan, make_wan_inputs
from torch import nn

from s2q.models import Family, resolve
from s2q.models.blocks import first_call, joined_tokens, record_calls, replay
from s2q.models.families import COGVIDEOX, HUNYUAN_VIDEO

ROTARY = {"use_rotary_positional_embeddings": True}


def rotary_arguments() -> dict:
    """Rotary angles as the pipeline passes them: (cos, sin), [video tokens, head dim] each."""
    angles = torch.linspace(0, 3, 8 * 16).reshape(8, 16)
    return {"image_rotary_emb": (angles.cos(), angles.sin())}


CASES = {
    "cogvideox": lambda: (make_transformer(), make_inputs()),
    "cogvideox-rotary": lambda: (make_transformer(**ROTARY), make_inputs() | rotary_arguments()),
    "wan": lambda: (make_wan(), make_wan_inputs()),
    "wan-time-of-each-token": lambda: (make_wan(), make_wan_inputs() | {"timestep": torch.arange(16).reshape(2, 8)}),
    "hunyuan": lambda: (make_hunyuan(), make_hunyuan_inputs()),
    "hunyuan-one-branch": lambda: (make_hunyuan(), make_hunyuan_inputs(batch=1)),
    "hunyuan-first-frame-given": lambda: (make_hunyuan(image_condition_type="token_replace"), make_hunyuan_inputs()),
}


@pytest.fixture(params=CASES)
def called(request: pytest.FixtureRequest) -> tuple[nn.Module, dict]:
    return CASES[request.param]()


@torch.no_grad()
def test_replayed_blocks_pass_on_exactly_what_the_model_passes_on(called: tuple[nn.Module, dict]) -> None:
    model, arguments = called
    family = resolve(model)
    seen: list = []
    blocks = family.blocks(model)
    handles = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for _, block in blocks]
    states, sides, _ = record_calls(model, family, arguments)
    for handle in handles:
        handle.remove()
    assert states.keys() == set(family.states)
    assert len(seen) == len(blocks) == 2 * len(family.block_lists)
    for (_, block), side, expected in zip(blocks, sides, seen, strict=True):
        states = replay(block, family, states, side)
        for name, tensor in zip(family.states, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert torch.equal(states[name], tensor)


def test_recording_leaves_no_hook_behind(called: tuple[nn.Module, dict]) -> None:
    model, arguments = called
    record_calls(model, resolve(model), arguments)
    first_call(model, resolve(model), arguments)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_first_call_is_the_first_of_all_calls_and_runs_no_block(called: tuple[nn.Module, dict]) -> None:
    model, arguments = called
    family = resolve(model)
    states, sides, _ = record_calls(model, family, arguments)

    def never(*_) -> None:
        raise AssertionError("a block ran")

    handle = family.blocks(model)[0][1].register_forward_hook(never)
    call = first_call(model, family, arguments)
    handle.remove()
    assert call.states.keys() == states.keys()
    assert all(torch.equal(call.states[name], states[name]) for name in states)
    assert call.sides.keys() == sides[0].keys()


def test_arguments_that_a_block_does_not_name_are_replayed_too() -> None:
    class Scale(nn.Module):
        def forward(self, hidden_states, temb, *scales, **more):
            return hidden_states * temb * sum(scales) + more["shift"]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Scale()])

        def forward(self, hidden_states):
            return self.layers[0](hidden_states, 2.0, 3.0, 4.0, shift=1.0)

    model, family = Model(), Family("mine", "MyPipeline", ("Model",), ("layers",), ("hidden_states",), (), "")
    states, sides, _ = record_calls(model, family, {"hidden_states": torch.ones(1, 2, 3)})
    assert torch.equal(replay(model.layers[0], family, states, sides[0])["hidden_states"], torch.full((1, 2, 3), 15.0))


def test_text_tokens_stand_where_they_stand_in_attention() -> None:
    states = {"hidden_states": torch.ones(1, 3, 2), "encoder_hidden_states": torch.zeros(1, 2, 2)}
    assert joined_tokens(COGVIDEOX, states)[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    assert joined_tokens(HUNYUAN_VIDEO, states)[0, :, 0].tolist() == [1, 1, 1, 0, 0]


def test_a_block_that_is_never_called_is_an_error(transformer: nn.Module) -> None:
    unused = transformer.transformer_blocks[1]
    transformer.transformer_blocks = nn.ModuleList([transformer.transformer_blocks[0]])
    forward = transformer.forward

    def without_last(**arguments):
        transformer.transformer_blocks = transformer.transformer_blocks[:1]
        try:
            return forward(**arguments)
        finally:
            transformer.transformer_blocks.append(unused)

    transformer.transformer_blocks.append(unused)
    transformer.forward = without_last
    with pytest.raises(RuntimeError, match=r"transformer_blocks\.1"):
        record_calls(transformer, COGVIDEOX, make_inputs())


def test_gradients_flow_through_a_replayed_block(transformer: nn.Module) -> None:
    states, sides, _ = record_calls(transformer, COGVIDEOX, make_inputs())
    output = joined_tokens(COGVIDEOX, replay(transformer.transformer_blocks[0], COGVIDEOX, states, sides[0]))
    output.sum().backward()
    assert transformer.transformer_blocks[0].attn1.to_q.weight.grad is not None


class Doubling(nn.Module):
    """A block of which there are two, and what its model does in between."""

    def forward(self, hidden_states):
        """Twice the states."""
        return hidden_states * 2


def doubling(between) -> tuple[nn.Module, Family]:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Doubling(), Doubling()])

        def forward(self, hidden_states):
            return self.blocks[1](between(self.blocks[0], self.blocks[0](hidden_states)))

    return Model(), Family("mine", "P", ("Model",), ("blocks",), ("hidden_states",), ("hidden_states",), "")


def test_what_a_model_writes_into_a_passed_on_state_is_noticed() -> None:
    model, family = doubling(lambda block, states: states.add_(1))  # the very same tensor
    recorded = record_calls(model, family, {"hidden_states": torch.ones(1, 2, 3)})
    assert torch.equal(recorded.restarts[1]["hidden_states"], torch.full((1, 2, 3), 3.0))


def test_a_block_that_is_called_twice_is_an_error() -> None:
    model, family = doubling(lambda block, states: block(states))
    with pytest.raises(RuntimeError, match=r"blocks\.0 is called more than once"):
        record_calls(model, family, {"hidden_states": torch.ones(1, 2, 3)})


def test_lists_that_do_not_run_in_their_order_are_replayed_all_the_same() -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Doubling(), Doubling()])
            self.others = nn.ModuleList([Doubling()])

        def forward(self, hidden_states):
            return self.blocks[1](self.others[0](self.blocks[0](hidden_states)))

    model = Model()
    family = Family("mine", "P", ("Model",), ("blocks", "others"), ("hidden_states",), ("hidden_states",), "")
    recorded, states = record_calls(model, family, {"hidden_states": torch.ones(1, 2, 3)}), None
    passed_on = []
    for index, (_, block) in enumerate(family.blocks(model)):
        states = recorded.restarts.get(index, states if index else recorded.first)
        states = replay(block, family, states, recorded.sides[index])
        passed_on.append(float(states["hidden_states"].mean()))
    assert passed_on == [2.0, 8.0, 4.0]
