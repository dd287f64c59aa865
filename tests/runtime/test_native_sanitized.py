"""The native code on random shapes, every instruction set: under the sanitizers of memory and behaviour, and on ARM."""

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


# For ARM: the instruction set, and what compiles and runs it on other machines.
I8MM = {"baseline": [], "i8mm": ["-march=armv8.2-a+i8mm"]}
CROSS, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
needs_sources = pytest.mark.skipif(not (SOURCES / "product.c").exists(), reason="installed without the sources")


def compiles(folder: Path, flags: list[str]) -> bool:
    """Whether there is a compiler that knows these flags."""
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    command = [COMPILER, *flags, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


def build(compiler: list[str], library: str, sets: dict[str, list[str]], defined: list[str], folder: Path) -> str:
    """The fuzzer of a library of `LIBRARIES` with code for these sets."""
    fuzz, dispatch, parts = LIBRARIES[library]
    objects = []
    for name, march in sets.items():
        for part in parts:
            objects.append(str(folder / f"{name}-{part}.o"))
            made = [*compiler, *march, f"-DSET={name}", "-c", str(SOURCES / f"{part}.c")]
            subprocess.run([*made, "-o", objects[-1]], check=True)
    program, sources = str(folder / "fuzz"), [str(FUZZ / fuzz), str(SOURCES / dispatch)]
    subprocess.run([*compiler, *defined, "-I", str(SOURCES), *sources, *objects, "-o", program, "-lm"], check=True)
    return program


def run(command: list[str], rounds: int) -> None:
    """Let the fuzzer find nothing."""
    done = subprocess.run(
        [*command, str(rounds)], capture_output=True, text=True, env=os.environ | {"ASAN_OPTIONS": ""}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == f"{rounds} rounds\n"


@needs_sources
@pytest.mark.skipif(COMPILER is None or platform.machine() != "x86_64", reason="wants a C compiler on x86-64")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("library", LIBRARIES)
def test_no_read_or_write_goes_astray_on_any_instruction_set(library: str, tmp_path: Path) -> None:
    if not compiles(tmp_path, SANITIZE):
        pytest.skip("the C compiler has no sanitizers")
    sets, defined = dict(SETS), ["-DX86"]
    for name, (flags, known) in OPTIONAL.items():
        if compiles(tmp_path, flags) and (name != "amx" or platform.system() == "Linux"):
            sets[name] = flags
            defined.append(known)
    run([build([COMPILER, *FLAGS, *SANITIZE], library, sets, defined, tmp_path)], 100)


@needs_sources
@pytest.mark.skipif(
    not (CROSS and EMULATOR),
    reason="wants aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, qemu-user)",
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_on_arm_every_instruction_set_gives_the_same_bits(library: str, tmp_path: Path) -> None:
    made = build([CROSS, "-O2", "-static", *FLAGS[2:]], library, I8MM, ["-DI8MM"], tmp_path)
    run([EMULATOR, "-cpu", "max", made], 100)
    run([EMULATOR, "-cpu", "cortex-a57", made], 1)  # which has the plainest set alone
