"""The quantized linear on the instruction sets that this machine has, each beside floats of the same set.

    OMP_NUM_THREADS=1 python benchmarks/instruction_sets.py --repeats 3 --results benchmarks/results/instruction-sets.json

`s2q bench` is run once for each set in a process of its own, in which torch's libraries are held to that set too. A processor
that has nothing better has other caches and clocks than this one: ratios carry over, roughly; times do not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from study import add_options, write

from s2q.runtime.native.library import AMX, instruction_sets

# What holds torch's own code, MKL and oneDNN to a set, where that is not the best they know.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
HELD = {
    "AVX2": AVX2,
    "AVX-VNNI": AVX2 | {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"},
    "AVX-512": AVX512,
    "AVX-512 VNNI (AMD)": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX-512 VNNI": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    AMX: {},
    "NEON I8MM": {},
}


def run(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What `s2q bench` finds with the set of this name."""
    models = [word for model in chosen.model for word in ("--model", model)]
    tokens = [word for count in chosen.tokens for word in ("--tokens", str(count))]
    numbers = ["--threads", str(chosen.threads), "--repeats", str(chosen.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "s2q", "bench", "--bits", "W4A8", *models, *tokens, *numbers]
        environment = os.environ | HELD[name] | {"S2Q_BACKEND": "native", "S2Q_INSTRUCTION_SET": name}
        subprocess.run([*command, "--json", str(written)], check=True, env=environment)
        return json.loads(written.read_text())


def main() -> None:
    """Run, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["CogVideoX-2B", "Wan-1.3B"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024])
    here = [name for name in instruction_sets() if name in HELD]
    parser.add_argument("--sets", nargs="+", default=here, choices=here, help="default: all that this machine has")
    add_options(parser)
    chosen = parser.parse_args()
    rows = []
    for name in chosen.sets:
        print(f"{name}:", flush=True)
        rows += [row | {"instruction_set": name} for row in run(name, chosen)["rows"]]
    write(chosen, rows)


if __name__ == "__main__":
    main()
