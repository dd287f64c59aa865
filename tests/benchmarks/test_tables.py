"""The paper's tables: every variant they name can be had, and every method is in them."""

from collections.abc import Callable
from types import ModuleType

import pytest

from s2q.comparison.cells import grid
from s2q.recipes import RECIPES, get_recipe


@pytest.fixture
def tables(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tables")


def test_every_variant_of_every_table_can_be_had(tables: ModuleType) -> None:
    for variants, bits in tables.TABLES.values():
        assert grid(variants, bits, 1)


def test_all_methods_are_compared_at_both_settings(tables: ModuleType) -> None:
    variants, bits = tables.TABLES["methods"]
    assert set(RECIPES) <= set(variants)
    assert bits == ["W4A6", "W4A4"]


@pytest.mark.parametrize("name", RECIPES)
def test_all_methods_have_the_same_budget(name: str) -> None:
    recipe, ours = get_recipe(name, "W4A6"), get_recipe("s2q_vdit", "W4A6")
    assert not recipe.needs_samples or (recipe.sampler.count, recipe.sampler.prompts) == (40, 10)
    assert recipe.optim.epochs <= ours.optim.epochs
    assert recipe.linear.weight_bits == recipe.modulation.weight_bits == 4
    assert (recipe.linear.act_bits, recipe.modulation.act_bits) == (6, 8)
    assert recipe.keep_float == ()


def test_costs_are_told_by_stage(tables: ModuleType) -> None:
    rows = [{"variant": "rtn", "bits": "W4A6", "seconds": {"trajectories": 0.0, "calibration": 1.25}}]
    assert tables.costs({"rows": rows}).splitlines()[2] == "| rtn | W4A6 | 0.0 s | 1.2 s |"
