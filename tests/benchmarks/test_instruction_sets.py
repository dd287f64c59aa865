"""Each instruction set is measured by `s2q bench` in a process of its own, torch's libraries held to that set."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from s2q.runtime.native import library


@pytest.mark.skipif(not library.instruction_sets(), reason="s2q was installed without a C compiler")
def test_every_set_but_the_plainest_has_floats_beside_it(script: Callable[[str], ModuleType]) -> None:
    assert set(library.instruction_sets()) <= {"baseline", *script("instruction_sets").HELD}


@pytest.mark.skipif(
    len(library.instruction_sets()) < 2, reason="this machine has one instruction set, or no native code"
)
def test_a_set_is_measured_with_its_own_code(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    name = library.instruction_sets()[1]
    chosen = argparse.Namespace(model=["demo"], tokens=[8], threads=1, repeats=1)
    made = script("instruction_sets").run(name, chosen)
    assert made["instruction_set"] == name
    assert f"S2Q_INSTRUCTION_SET={name} s2q bench" in made["command"]
    assert {(row["model"], row["m"]) for row in made["rows"]} == {("demo", 8)}
