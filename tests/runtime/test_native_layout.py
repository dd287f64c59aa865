"""Squares, which AMX alone multiplies, hold the codes on every machine that can make them."""

from functools import cache

import pytest
import torch
from awkward import rows

from s2q.runtime import reference
from s2q.runtime.backend import Problem
from s2q.runtime.native import backend, layout, library
from s2q.runtime.reference import ActFormat, InputTransform


# They are made in registers of 512 bits.
@pytest.mark.parametrize(
    "each_set", [name for name in library.instruction_sets() if name.startswith(("AVX-512", "AMX"))], indirect=True
)
@pytest.mark.parametrize("count", [16, 17, 40])
@pytest.mark.parametrize(("columns", "groups"), [(64, 1), (136, 1), (160, 1), (160, 2), (384, 4)])
@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (6, True), (6, False), (8, True)])
@pytest.mark.parametrize("kind", ["outlier", "ties"])
def test_squares_hold_the_codes_of_the_definition(
    each_set: str, count: int, columns: int, groups: int, bits: int, symmetric: bool, kind: str, monkeypatch
) -> None:
    monkeypatch.setattr(library, "takes_squares", cache(lambda: True))
    native, acts = backend.NativeBackend(), ActFormat(bits, symmetric, groups)
    x = rows((count, columns), kind, torch.float32, 0)
    problem = Problem(x.device, x.dtype, *x.shape, 1, acts, 4)
    assert layout.plan_of(problem).layout == library.SQUARES
    expected = reference.quantize_input(x, InputTransform(), acts)
    made = native.natural(native.quantize_input(x, InputTransform(), problem), problem)
    assert torch.equal(made.codes, expected.codes)
    assert torch.equal(made.scale, expected.scale)
