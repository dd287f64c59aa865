"""Models with random weights: what is measured on them must be what users run."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from tiny import make_inputs, make_transformer

from s2q.models.lookup import resolve
from s2q.random_model import random_model, random_spec
from s2q.recipes import RECIPES, get_recipe
from s2q.runtime.linear import QuantLinear

CONFIG = {key: value for key, value in make_transformer().config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", RECIPES)
@torch.no_grad()
def test_a_random_model_of_every_recipe_runs_and_gives_numbers(name: str) -> None:
    model = random_model(CogVideoXTransformer3DModel, CONFIG, get_recipe(name, "W4A6"), torch.bfloat16)
    inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in make_inputs().items()}
    output = model(**inputs, return_dict=False)[0]
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_every_linear_of_the_blocks_is_packed_and_nothing_else() -> None:
    recipe = get_recipe("s2q_plus", "W4A6")
    packed = random_model(CogVideoXTransformer3DModel, CONFIG, recipe, torch.float32)
    plain = make_transformer()
    family = resolve(plain)
    wanted = {
        f"{block_name}.{name}"
        for block_name, block in family.blocks(plain)
        for group in family.groups(block)
        for name in group
    }
    assert {name for name, module in packed.named_modules() if isinstance(module, QuantLinear)} == wanted
    assert random_spec(plain, family, recipe).scheme_of().keys() == wanted


def test_the_same_seed_makes_the_same_model() -> None:
    first, second = (random_model(CogVideoXTransformer3DModel, CONFIG, None, torch.float32, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["s2q_vdit", "s2q_plus", "q_dit"])
def test_weights_lie_around_zero_as_those_of_a_model(name: str) -> None:
    """Outputs that grow from layer to layer end where a GELU is slow, and only the quantized model would be timed there."""
    model = random_model(CogVideoXTransformer3DModel, CONFIG, get_recipe(name, "W4A8"), torch.float32)
    for module in model.modules():
        if isinstance(module, QuantLinear):
            weight = module.dequantize().weight
            assert weight.mean().abs() < 0.3 * weight.std()
