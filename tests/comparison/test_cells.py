"""Which quantizations are compared."""

import pytest

from s2q.comparison.cells import Cell, grid


def test_a_variant_is_its_recipe_with_fields_changed() -> None:
    recipe = Cell("s2q_vdit:optim.epochs=3:sampler.kind=random", "W4A4", 0).recipe()
    assert (recipe.name, recipe.bits, recipe.optim.epochs, recipe.sampler.kind) == ("s2q_vdit", "W4A4", 3, "random")


def test_every_cell_has_a_folder_of_its_own_with_a_plain_name() -> None:
    variants = ["rtn", "gptq", "gptq:sampler.kind=random", 's2q_vdit:keep_float=["ff.*"]']
    cells = grid(variants, ["W4A6", "W4A4"], 2)
    keys = [cell.key for cell in cells]
    assert len(set(keys)) == len(keys)
    assert all(key.isascii() and "/" not in key and ":" not in key and " " not in key for key in keys)


def test_what_draws_nothing_is_made_once_and_whole_seeds_come_first() -> None:
    cells = grid(["rtn", "gptq"], ["W4A6"], 3)
    assert [(cell.variant, cell.seed) for cell in cells] == [("rtn", 0), ("gptq", 0), ("gptq", 1), ("gptq", 2)]


@pytest.mark.parametrize("variants", [["rtn", "rtn"], ["awq"], ["rtn:optim.epochs=none"], ["rtn:linear=1"]])
def test_what_cannot_be_had_is_refused(variants: list[str]) -> None:
    with pytest.raises(ValueError, match=r"twice|unknown|cannot"):
        grid(variants, ["W4A6"], 1)
