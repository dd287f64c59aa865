"""The quantized linear against `F.linear`, interleaved in one process: ratios of medians.

    python benchmarks/linear.py --threads 1 --results benchmarks/results/linear.json

Random weights and inputs: this is about speed. Every candidate is a complete linear, from float input to float output
with bias; `transform` includes the online channel scale and Kronecker transform, done for one linear alone.
"""

import argparse
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

from s2q.checkpoint import SchemeSpec
from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.packing import pack
from s2q.runtime.linear import QuantLinear
from s2q.storage import write_json

SHAPES = {
    "CogVideoX-2B": [(1920, 1920), (1920, 7680), (7680, 1920)],
    "Wan-1.3B": [(1536, 1536), (1536, 8960), (8960, 1536)],
    "demo": [(160, 160), (160, 640), (640, 160)],
}


def quantized(columns: int, rows_out: int, transform: bool, generator: torch.Generator) -> QuantLinear:
    """A W4A6 linear with random codes, and a random transform if asked for."""
    factors = kronecker_factors(columns)
    scheme = SchemeSpec(
        weight_bits=4,
        act_bits=6,
        channel_scale=transform,
        kronecker=transform,
        kronecker_factors={str(columns): factors},
        targets={},
    )
    linear = QuantLinear(columns, rows_out, True, scheme)
    codes = torch.randint(-8, 8, (rows_out, columns), generator=generator).to(torch.int8)
    linear.weight_packed.data = pack(codes, 4)
    linear.weight_scale.data.fill_(0.01)
    linear.bias.data.zero_()
    if transform:
        linear.input_scale.data.fill_(1.0)
        linear.input_left.data = random_orthogonal(factors[0], generator)
        linear.input_right.data = random_orthogonal(factors[1], generator)
    return linear


@torch.inference_mode()
def compare(columns: int, rows_out: int, rows: int, repeats: int) -> dict[str, float]:
    """Median seconds of each candidate for one shape, all timed in turn."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, columns, generator=generator), torch.randn(rows_out, columns, generator=generator)
    bias = torch.zeros(rows_out)
    low = [tensor.bfloat16() for tensor in (x, weight, bias)]
    plain, transformed = (quantized(columns, rows_out, transform, generator) for transform in (False, True))
    candidates = {
        "float32": lambda: functional.linear(x, weight, bias),
        "bfloat16": lambda: functional.linear(*low),
        "w4a6 float32": lambda: plain(x),
        "w4a6 bfloat16": lambda: plain(low[0]),
        "w4a6 transform bfloat16": lambda: transformed(low[0]),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 2):
        for name, function in candidates.items():
            started = time.perf_counter()
            function()
            if repeat >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Run all shapes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    print(
        "| model | K → N | M | W4A6 over float32 | over bfloat16 | with transform, over bfloat16 |\n|---|---|---|---|---|---|"
    )
    for model, shapes in SHAPES.items():
        for columns, rows_out in shapes:
            for rows in arguments.rows:
                seconds = compare(columns, rows_out, rows, arguments.repeats)
                ratios = (
                    seconds["float32"] / seconds["w4a6 float32"],
                    seconds["bfloat16"] / seconds["w4a6 bfloat16"],
                    seconds["bfloat16"] / seconds["w4a6 transform bfloat16"],
                )
                print(
                    f"| {model} | {columns} → {rows_out} | {rows} | " + " | ".join(f"{r:.2f}×" for r in ratios) + " |"
                )
                results.append({"model": model, "k": columns, "n": rows_out, "m": rows, "median_seconds": seconds})
    if arguments.results:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
        command = "python " + shlex.join(sys.argv)
        write_json(
            arguments.results,
            {"command": command, "threads": arguments.threads, "torch": torch.__version__, **machine, "rows": results},
        )


if __name__ == "__main__":
    main()
