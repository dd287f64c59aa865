"""The kernels pass Triton's compiler and NVIDIA's assembler, which the interpreter never asks; no GPU is needed for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(("capability", "unit"), [(80, "mma"), (90, "wgmma")])
def test_every_kernel_compiles_and_multiplies_on_tensor_cores(capability: int, unit: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    units = dict(line.split(": ") for line in done.stdout.splitlines())
    assert [units[case] for case in ("W4", "W4 in groups", "W3", "W8")] == [unit] * 4
    assert units["W4A16"] == "mma"
    assert units["rows"] == units["sums"] == "-"
