"""The same bits each time: MKL is asked for them before it multiplies."""

import os
import subprocess
import sys

import pytest

from s2q.reproducible import ask_for_the_same_bits


def test_what_the_user_chose_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    ask_for_the_same_bits()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


PRODUCTS = """
import torch
from s2q.reproducible import ask_for_the_same_bits
ask_for_the_same_bits()
torch.manual_seed(0)
for rows, columns in [(1, 16), (1, 40), (3, 24), (63, 64)]:
    x, w = torch.randn(rows, columns), torch.randn(24, columns)
    room = torch.empty(x.numel() + 16)
    for offset in range(16):  # the same numbers, at sixteen places in memory
        moved = room[offset : offset + x.numel()].view_as(x).copy_(x)
        assert torch.equal(moved @ w.mT, x @ w.mT), (rows, columns, offset)
"""


def test_a_product_does_not_depend_on_where_its_tensors_lie() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", PRODUCTS], check=True, env=environment)
