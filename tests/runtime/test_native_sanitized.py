"""The native code under the address and undefined-behaviour sanitizers: random shapes, every instruction set."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import s2q.runtime.native

SOURCES = Path(s2q.runtime.native.__file__).parent
FUZZ = Path(__file__).parent / "native"
# Library → what feeds it, what chooses the set, and what is compiled for each set.
LIBRARIES = {
    "linears": ("fuzz.c", "dispatch.c", ("input", "product", "around", "peak", "learning", "learning_kronecker")),
    "attention": ("fuzz_attention.c", "attention_dispatch.c", ("attention", "attention_pack")),
}
COMPILER = shutil.which("cc")
FLAGS = ["-O0", "-g", "-std=c11", "-Wno-psabi", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# As in CMakeLists.txt: set → flags; those of OPTIONAL where the compiler knows them, and what is then defined for the dispatch.
SETS = {
    "baseline": [],
    "avx2": ["-march=haswell"],
    "avx512": ["-march=skylake-avx512"],
    "vnni_registers": ["-march=cascadelake", "-DIN_REGISTERS=1"],
    "vnni": ["-march=cascadelake"],
}
OPTIONAL = {
    "avxvnni": (["-march=haswell", "-mavxvnni"], "-DAVX_VNNI_BUILT"),
    "amx": (["-march=cascadelake", "-mamx-tile", "-mamx-int8"], "-DAMX"),
}


def compiles(folder: Path, flags: list[str]) -> bool:
    """Whether there is a compiler that knows these flags."""
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    command = [COMPILER, *flags, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(COMPILER is None or platform.machine() != "x86_64", reason="wants a C compiler on x86-64")
@pytest.mark.skipif(not (SOURCES / "product.c").exists(), reason="installed without the sources")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("library", LIBRARIES)
def test_no_read_or_write_goes_astray_on_any_instruction_set(library: str, tmp_path: Path) -> None:
    fuzz, dispatch, parts = LIBRARIES[library]
    if not compiles(tmp_path, SANITIZE):
        pytest.skip("the C compiler has no sanitizers")
    sets, objects, defined = dict(SETS), [], ["-DX86"]
    for name, (flags, known) in OPTIONAL.items():
        if compiles(tmp_path, flags) and (name != "amx" or platform.system() == "Linux"):
            sets[name] = flags
            defined.append(known)
    for name, march in sets.items():
        for part in parts:
            objects.append(str(tmp_path / f"{name}-{part}.o"))
            made = [COMPILER, *FLAGS, *SANITIZE, *march, f"-DSET={name}", "-c", str(SOURCES / f"{part}.c")]
            subprocess.run([*made, "-o", objects[-1]], check=True)
    program = str(tmp_path / "fuzz")
    whole = [
        COMPILER,
        *FLAGS,
        *SANITIZE,
        *defined,
        "-I",
        str(SOURCES),
        str(FUZZ / fuzz),
        str(SOURCES / dispatch),
        *objects,
    ]
    subprocess.run([*whole, "-o", program, "-lm"], check=True)
    done = subprocess.run([program, "100"], capture_output=True, text=True, env=os.environ | {"ASAN_OPTIONS": ""})
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "100 rounds\n"
