"""Every architecture that has a row: taken apart exactly, its inputs known, quantized, saved, loaded by plain diffusers."""

from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from tiny import cheap
from tiny_transformers import ARCHITECTURES, Tiny
from torch import nn

import s2q  # noqa: F401 - teaches diffusers to load what is saved here
from s2q.models import resolve
from s2q.models.blocks import joined_tokens, record_calls, replay, states_of
from s2q.models.pipelines import OpenPipeline
from s2q.package import write_transformer
from s2q.quantization.block import calibrate_block, packed_block
from s2q.quantization.objective import BlockSample
from s2q.quantization.tokens import received_by_block, token_weights, weights_of_all
from s2q.workspace import Workspace


@pytest.fixture(params=ARCHITECTURES, ids=lambda tiny: tiny.name)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.param


def run(model: nn.Module, tiny: Tiny, seed: int = 0) -> torch.Tensor:
    return model(**tiny.inputs(seed), return_dict=False)[0]


@torch.no_grad()
def test_replayed_block_by_block_it_passes_on_exactly_what_it_passes_on_as_a_whole(tiny: Tiny) -> None:
    model = tiny.make()
    family = resolve(model)
    blocks, seen = family.blocks(model), []
    handles = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for _, block in blocks]
    recorded = record_calls(model, family, tiny.inputs(0))
    for handle in handles:
        handle.remove()
    assert len(blocks) == len(seen) == tiny.blocks
    assert bool(recorded.restarts) == tiny.restarts
    states = recorded.first
    for index, (name, block) in enumerate(blocks):
        states = replay(block, family, recorded.restarts.get(index, states), recorded.sides[index])
        expected = seen[index] if isinstance(seen[index], tuple) else (seen[index],)
        for state, tensor in zip(states_of(block, family), expected, strict=True):
            assert torch.equal(states[state], tensor), name


@torch.no_grad()
def test_linears_share_an_input_exactly_where_the_row_says_so(tiny: Tiny) -> None:
    model = tiny.make()
    family = resolve(model)
    for name, block in family.blocks(model):
        inputs: dict[str, torch.Tensor] = {}

        def receive(key: str, inputs: dict = inputs):
            return lambda module, args: inputs.__setitem__(key, args[0])

        linears = {key: module for key, module in block.named_modules() if isinstance(module, nn.Linear)}
        handles = [linear.register_forward_pre_hook(receive(key)) for key, linear in linears.items()]
        run(model, tiny)
        for handle in handles:
            handle.remove()
        group_of = {key: group for group in family.groups(block) for key in group}
        assert group_of.keys() == linears.keys() == inputs.keys(), name
        for one in inputs:
            for other in inputs:
                shared = inputs[one] is inputs[other]
                assert shared == (group_of[one] == group_of[other]), f"{name}: {one} and {other}"
        assert all(inputs[key].ndim == 2 for key in inputs if family.is_modulation(key)), "a vector a sample"
        text = {inputs[key].shape[1] for key in inputs if family.sees_text_alone(key)}
        video = {inputs[key].shape[1] for key in inputs if key.endswith("to_out.0")}
        assert not text & video, f"{name}: what sees text alone has another length than the video"


@torch.no_grad()
def test_attention_is_seen_in_every_block_and_sums_to_heads_times_queries(tiny: Tiny) -> None:
    model = tiny.make()
    family = resolve(model)
    received = received_by_block(model, family, tiny.inputs(0))
    assert len(received) == tiny.blocks
    heads = model.config.num_attention_heads
    for sums in received:
        for row in sums:
            queries = float(row.sum()) / heads
            assert queries == pytest.approx(round(queries), abs=1e-3)
            assert 1 <= round(queries) <= len(row)


def test_quantized_saved_and_loaded_by_plain_diffusers_it_gives_what_its_packed_blocks_give(
    tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.make().requires_grad_(False)
    model.save_pretrained(tmp_path / "float" / "transformer")
    family, recipe = resolve(model), cheap("s2q_vdit", "W4A6")
    calls = [record_calls(model, family, tiny.inputs(seed)) for seed in range(2)]
    received = [received_by_block(model, family, tiny.inputs(seed)) for seed in range(2)]
    workspace = Workspace.open(tmp_path / "work", {})
    states = [call.first for call in calls]
    packed: dict[str, nn.Module] = {}
    for index, (name, block) in enumerate(family.blocks(model)):
        samples = []
        for k, call in enumerate(calls):
            entering = call.restarts.get(index, states[k])
            with torch.no_grad():
                states[k] = replay(block, family, entering, call.sides[index])
            target = joined_tokens(family, states[k])
            weights = weights_of_all(token_weights(received[k][index]), target.shape[1])
            samples.append(BlockSample(entering, call.sides[index], target, weights))
        groups = family.groups(block)
        calibrated = calibrate_block(block, family, recipe, groups, samples, seed=index)
        assert calibrated.error < 0.5
        workspace.write_block(index, name, groups, calibrated)
        packed[name] = packed_block(block, family, recipe, calibrated.tensors)
    opened = OpenPipeline("tiny", tmp_path / "float", SimpleNamespace(transformer=model), family)
    write_transformer(opened, recipe, workspace, tmp_path / "out", {})
    loaded = getattr(diffusers, tiny.name).from_pretrained(tmp_path / "out").eval()
    for name, block in packed.items():
        model.set_submodule(name, block)
    with torch.no_grad():
        ours, theirs = run(loaded, tiny), run(model, tiny)
    # Float products outside the blocks may round by how a tensor lies in memory, and that differs after loading.
    assert torch.equal(ours, theirs) or (tiny.restarts and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5))
