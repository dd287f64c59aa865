"""The study of growth: what it foretells, on costs whose growth is known."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def growth(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("growth")


def test_a_cost_of_the_assumed_kind_is_foretold_exactly(growth: ModuleType) -> None:
    made = growth.foretold([1, 2, 4, 8], lambda sizes: [3 + 2 * n + 0.5 * n * n for n in sizes], 2)
    assert made["curve"] == pytest.approx([3, 2, 0.5])
    assert made["relative_error"] == pytest.approx(0, abs=1e-9)


def test_the_last_size_takes_no_part_in_what_foretells_it(growth: ModuleType) -> None:
    made = growth.foretold([1, 2, 4, 8], lambda sizes: [float(n) for n in sizes[:-1]] + [80.0], 1)
    assert made["foretold_seconds"] == pytest.approx(8)
    assert made["relative_error"] == pytest.approx(-0.9)


def test_noise_makes_no_cost_that_falls_with_size(growth: ModuleType) -> None:
    assert (growth.fit([1, 2, 3], [1.0, 0.9, 0.95], 2) >= 0).all()
