"""The kernels pass Triton's compiler and NVIDIA's assembler, which the interpreter never asks; no GPU is needed for it."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compiled(capability: int, cases: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Case → wgmma, mma or -, as the compiled code has it, and "by bytes" if single bytes are loaded."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(SCRIPT), str(capability), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ") for line in done.stdout.splitlines())


def test_every_kernel_compiles_for_hopper_and_multiplies_on_its_tensor_cores(tmp_path: Path) -> None:
    units = compiled(90, (), tmp_path)
    assert [units[case] for case in ("W4", "W4 and GELU", "W4 in groups", "W8", "left", "right")] == ["wgmma"] * 6
    assert units["W4, one after the other"] == "wgmma"
    assert units["W3"] == "wgmma by bytes"
    assert units["W4A16"] == "mma"
    assert [units[case] for case in ("sums", "rows", "rows in groups", "blocks", "blocks of groups")] == ["-"] * 5


def test_the_main_kernels_compile_for_the_oldest_gpu_that_is_taken(tmp_path: Path) -> None:
    assert compiled(80, ("W4 in groups", "left", "rows"), tmp_path) == {
        "W4 in groups": "mma",
        "left": "mma",
        "rows": "-",
    }
