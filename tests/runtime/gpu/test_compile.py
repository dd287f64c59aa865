"""The kernels pass Triton's compiler and NVIDIA's assembler, which the interpreter never asks; no GPU is needed for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that a program may have at most, by compute capability (CUDA C++ Programming Guide, technical
# specifications): Ampere, its GeForce cards, Ada, Hopper, Blackwell, its GeForce cards.
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
UNITS = {90: "wgmma", 100: "tcgen05"}
SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compiled(capability: int, cases: tuple[str, ...], folder: Path) -> dict[str, str]:
    """Case → tcgen05, wgmma, mma or -, as the compiled code has it, and "by bytes" if single bytes are loaded.

    No kernel takes more shared memory than the GPU has.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(SCRIPT), str(capability), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(": ") for line in done.stdout.splitlines()]
    assert all(int(shared) <= SHARED[capability] for *_, shared in lines)
    return {case: unit for case, unit, _ in lines}


def test_every_kernel_compiles_for_hopper_and_multiplies_on_its_tensor_cores(tmp_path: Path) -> None:
    units = compiled(90, (), tmp_path)
    assert [units[case] for case in ("W4", "W4 and GELU", "W4 in groups", "W8", "left", "right")] == ["wgmma"] * 6
    assert units["W4, one after the other"] == "wgmma"
    assert units["W3"] == "wgmma by bytes"
    assert units["W4A16"] == "mma"
    assert [units[case] for case in ("sums", "rows", "rows in groups", "blocks", "blocks of groups")] == ["-"] * 5


@pytest.mark.parametrize("capability", sorted(SHARED.keys() - {90}))
def test_the_main_kernels_compile_for_each_generation_and_multiply_on_its_tensor_cores(
    capability: int, tmp_path: Path
) -> None:
    unit = UNITS.get(capability, "mma")
    assert compiled(capability, ("W4", "W4 in groups", "left", "rows"), tmp_path) == {
        "W4": unit,
        "W4 in groups": unit,
        "left": unit,
        "rows": "-",
    }
