"""One block calibrated: better than rounding, the same every time, and honest about its error."""

from typing import Any

import pytest
import torch
from tiny import cheap, make_inputs, make_transformer

from s2q.models.blocks import joined_tokens, record_calls, replay
from s2q.models.families import COGVIDEOX
from s2q.numerics.packing import unpack
from s2q.numerics.quantizer import integer_range
from s2q.quantization.block import CalibratedBlock, calibrate_block, packed_block
from s2q.quantization.objective import BlockSample, collate, relative_error, weighted_error
from s2q.recipe import Recipe


@pytest.fixture(scope="module")
def block() -> torch.nn.Module:
    return make_transformer().transformer_blocks[0].requires_grad_(False)


@pytest.fixture(scope="module")
def samples() -> list[BlockSample]:
    """Four calls of the first block, each of two guidance branches."""
    model, made = make_transformer(), []
    for seed in range(4):
        states, sides, _ = record_calls(model, COGVIDEOX, make_inputs(seed=seed))
        with torch.no_grad():
            target = joined_tokens(COGVIDEOX, replay(model.transformer_blocks[0], COGVIDEOX, states, sides[0]))
        weights = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed)) / 2 + 0.5
        made.append(BlockSample(states, sides[0], target, weights))
    return made


def calibrate(block: Any, recipe: Recipe, samples: list[BlockSample], seed: int = 0, **more: Any) -> CalibratedBlock:
    return calibrate_block(block, COGVIDEOX, recipe, COGVIDEOX.groups(block), samples, seed, **more)


def test_learning_beats_rounding_to_nearest(block: Any, samples: list[BlockSample]) -> None:
    done = calibrate(block, cheap("s2q_vdit", "W4A4", "optim.epochs=10"), samples)
    assert done.error < 0.8 * done.error_nearest


def test_more_learning_is_not_worse_than_hardly_any(block: Any, samples: list[BlockSample]) -> None:
    recipes = [cheap("s2q_vdit", "W4A4", f"optim.epochs={epochs}") for epochs in (1, 15)]
    little, much = (calibrate(block, recipe, samples).error for recipe in recipes)
    assert much < little


def test_gptq_beats_nearest(block: Any, samples: list[BlockSample]) -> None:
    done = calibrate(block, cheap("gptq", "W3A8"), samples)
    assert done.error < done.error_nearest


def test_the_error_told_is_that_of_the_packed_block(block: Any, samples: list[BlockSample]) -> None:
    recipe = cheap("s2q_vdit", "W4A6")
    done = calibrate(block, recipe, samples)
    packed = packed_block(block, COGVIDEOX, recipe, done.tensors)
    error = power = 0.0
    for sample in samples:
        with torch.no_grad():
            output = joined_tokens(COGVIDEOX, replay(packed, COGVIDEOX, sample.states, sample.sides))
        error += float((output - sample.target).double().square().sum())
        power += float(sample.target.double().square().sum())
    assert done.error == pytest.approx(error / power, rel=1e-6)
    assert relative_error(block, COGVIDEOX, samples) == 0


def test_round_to_nearest_needs_no_samples_and_is_what_it_says(block: Any, samples: list[BlockSample]) -> None:
    blind, seeing = (calibrate(block, cheap("rtn", "W4A6"), given) for given in ([], samples))
    assert blind.error is blind.error_nearest is None
    assert seeing.error == pytest.approx(seeing.error_nearest, rel=1e-3)
    for name, named in blind.tensors.items():
        assert all(torch.equal(tensor, seeing.tensors[name][key]) for key, tensor in named.items())


@pytest.mark.parametrize("name", ["s2q_vdit", "gptq"])
def test_same_seed_gives_the_same_bits(name: str, block: Any, samples: list[BlockSample]) -> None:
    torch.manual_seed(1)
    one = calibrate(block, cheap(name, "W4A6"), samples, seed=3)
    torch.manual_seed(2)
    two = calibrate(block, cheap(name, "W4A6"), samples, seed=3)
    for linear, named in one.tensors.items():
        assert all(torch.equal(tensor, two.tensors[linear][key]) for key, tensor in named.items())


def test_other_seed_gives_other_rotations(block: Any, samples: list[BlockSample]) -> None:
    one, two = (calibrate(block, cheap("s2q_vdit", "W4A6"), samples, seed=seed).tensors for seed in (0, 1))
    assert not torch.equal(one["attn1.to_q"]["input_left"], two["attn1.to_q"]["input_left"])


@pytest.mark.parametrize("bits", ["W2A4", "W3A5", "W4A6", "W8A8"])
def test_all_codes_lie_on_the_grid(bits: str, block: Any, samples: list[BlockSample]) -> None:
    weight_bits = int(bits[1])
    smallest, largest = integer_range(weight_bits)
    for named in calibrate(block, cheap("s2q_vdit", bits), samples).tensors.values():
        codes = unpack(named["weight_packed"], weight_bits, int(named["weight_shape"][1]))
        assert smallest <= int(codes.min()) <= int(codes.max()) <= largest


def test_linears_that_share_an_input_share_its_transform_to_the_bit(block: Any, samples: list[BlockSample]) -> None:
    tensors = calibrate(block, cheap("s2q_vdit", "W4A6"), samples).tensors
    for key in ("input_scale", "input_left", "input_right", "input_clip"):
        for other in ("attn1.to_k", "attn1.to_v"):
            assert torch.equal(tensors["attn1.to_q"][key], tensors[other][key])


def test_the_float_block_is_left_as_it_was(block: Any, samples: list[BlockSample]) -> None:
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    calibrate(block, cheap("s2q_vdit", "W4A6"), samples)
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert not any(module._forward_pre_hooks for module in block.modules())


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(2, 1, 8), (3, 2, 6), (1, 3, 2)])
def test_steps_are_told_one_by_one(
    epochs: int, batch_size: int, steps: int, block: Any, samples: list[BlockSample]
) -> None:
    recipe = cheap("s2q_vdit", "W4A6", f"optim.epochs={epochs}", f"optim.batch_size={batch_size}")
    told: list[int] = []
    calibrate(block, recipe, samples, on_step=lambda: told.append(1))
    assert len(told) == steps


def test_weighted_error_is_equation_10(samples: list[BlockSample]) -> None:
    sample = samples[0]
    output = sample.target + 0.1 * torch.randn(sample.target.shape, generator=torch.Generator().manual_seed(0))
    numerator = denominator = 0.0
    for b in range(2):
        for j in range(16):
            difference = output[b, j] - sample.target[b, j]
            numerator += float(sample.weights[b, j] * difference.square().sum())
            denominator += float(sample.target[b, j].square().sum())
    assert float(weighted_error(output, sample)) == pytest.approx(numerator / denominator, rel=1e-5)


def test_a_batch_of_samples_gives_each_its_own_output(block: Any, samples: list[BlockSample]) -> None:
    batch = collate(samples[:3])
    with torch.no_grad():
        output = joined_tokens(COGVIDEOX, replay(block, COGVIDEOX, batch.states, batch.sides))
    assert torch.allclose(output, batch.target, atol=1e-5)
    assert batch.weights.shape == (6, 16)
    assert collate(samples[:1]) is samples[0]
