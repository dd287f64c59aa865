"""What is compared: recipes, or variants of them, at some bits, from some calibration seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from s2q.recipe import Recipe
from s2q.recipes import get_recipe, override


@dataclass(frozen=True)
class Cell:
    """One quantization of the comparison."""

    variant: str
    """A recipe's name, or NAME:FIELD=VALUE with one or more changed fields."""
    bits: str
    seed: int
    """Of the calibration: prompts, noise, samples, start. The clips compared are the same for every seed."""

    @property
    def key(self) -> str:
        """A folder's name."""
        return f"{re.sub(r'[^A-Za-z0-9._=-]+', '-', self.variant)}-{self.bits}-seed{self.seed}"

    def recipe(self) -> Recipe:
        """The recipe that the variant names.

        Raises:
            ValueError: no such recipe, field or value.
        """
        name, *changes = self.variant.split(":")
        return override(get_recipe(name, self.bits), changes)


def grid(variants: Sequence[str], bits: Sequence[str], seeds: int) -> list[Cell]:
    """All cells, seeds outermost, so that a comparison that is broken off has whole seeds.

    A recipe that needs no samples and draws nothing gives the same result whatever the seed, and is made once.

    Raises:
        ValueError: a variant that cannot be had, or named twice.
    """
    if len(set(variants)) < len(variants):
        raise ValueError(f"a recipe is named twice: {', '.join(variants)}")
    cells = [Cell(variant, wanted, seed) for seed in range(seeds) for wanted in bits for variant in variants]
    recipes = [cell.recipe() for cell in cells]
    return [cell for cell, recipe in zip(cells, recipes, strict=True) if cell.seed == 0 or recipe.needs_samples]
