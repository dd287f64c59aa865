"""What compilers make of the product: its sums stay in registers, without which it would be several times as slow."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import s2q.runtime.native

PRODUCT = Path(s2q.runtime.native.__file__).parent / "product.c"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
FLAGS = [
    "-O3",
    "-std=c11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-DSET=vnni",
    "-march=cascadelake",
]
LINE = re.compile(r"\s+([0-9a-f]+):\s+(.*)")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)")


def innermost_loop(text: str, function: str) -> list[str]:
    """The instructions of the shortest loop of a disassembled function that multiplies."""
    body = text.partition(f"<{function}>:\n")[2].partition("\n\n")[0]
    lines = [(int(found[1], 16), found[2]) for found in map(LINE.match, body.splitlines()) if found]
    loops = []
    for end, (address, instruction) in enumerate(lines):
        jump = JUMP.match(instruction)
        if jump and int(jump[1], 16) < address:
            loop = [words for start, words in lines[: end + 1] if start >= int(jump[1], 16)]
            if any("vpdpbusd" in words for words in loop):
                loops.append(loop)
    return min(loops, key=len)


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("objdump"), reason="wants objdump on x86-64")
@pytest.mark.skipif(not PRODUCT.exists(), reason="installed without the sources")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("function", "sums"), [("plain_8", 16), ("groups_6", 12)])
def test_the_sums_of_a_tile_stay_in_registers(compiler: str, function: str, sums: int, tmp_path: Path) -> None:
    made = tmp_path / "product.o"
    subprocess.run([compiler, *FLAGS, "-c", str(PRODUCT), "-o", str(made)], check=True)
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(made)]
    loop = innermost_loop(subprocess.run(command, capture_output=True, text=True, check=True).stdout, function)
    products = sum("vpdpbusd" in instruction for instruction in loop)
    assert products % (2 * sums) == 0  # of both halves of eight columns
    on_stack = [instruction for instruction in loop if "(%rsp" in instruction or "(%rbp" in instruction]
    assert len(on_stack) <= products / 4, on_stack
