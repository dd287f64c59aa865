"""A step of learning is timed with and without native code, and nothing of that remains."""

import os
from collections.abc import Callable
from types import ModuleType

import pytest


def test_each_recipe_takes_its_turn_on_both_ways(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("S2Q_BACKEND", raising=False)
    learning, wanted = script("learning"), []
    monkeypatch.setattr(
        learning.Gradients, "find", lambda self, sample, progress: wanted.append(os.environ["S2Q_BACKEND"])
    )
    row = learning.measure("demo", (1, 4, 4), 1)
    assert wanted == ["", "torch"] * (len(wanted) // 2) != []
    assert set(row["ratios"]) == set(learning.RECIPES)
    for name, ratio in row["ratios"].items():
        seconds = row["median_seconds"]
        assert ratio == pytest.approx(seconds[f"{name}, plain torch"] / seconds[f"{name}, native"])
    assert "S2Q_BACKEND" not in os.environ


def test_a_step_finds_gradients(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    learning, found = script("learning"), []
    monkeypatch.setattr(learning, "RECIPES", ("s2q_plus W4A8",))
    find = learning.Gradients.find

    def watched(self: object, *given: object) -> None:
        find(self, *given)
        found.append(all(parameter.grad is not None for parameter in self.params))

    monkeypatch.setattr(learning.Gradients, "find", watched)
    learning.measure("demo", (1, 4, 4), 1)
    assert len(found) >= 2
    assert all(found)
