"""The quantized linear against `torch.nn.functional.linear`, interleaved in one process: who computes it, and how fast.

Random weights and inputs: this is about speed. Every candidate is a complete linear, from float input to float output with
bias; `transform` includes the online channel scale and Kronecker transform, done for one linear alone; `groups` are zero points
on both sides and a step for each 64 channels of a token.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from s2q.checkpoint import SchemeSpec
from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.packing import pack
from s2q.runtime.integer import why_not_int_mm
from s2q.runtime.linear import QuantLinear
from s2q.runtime.native import library as native

# Widths (K, N) of the blocks' linears.
SHAPES = {
    "CogVideoX-2B": [(1920, 1920), (1920, 7680), (7680, 1920)],
    "CogVideoX-5B": [(3072, 3072), (3072, 12288), (12288, 3072)],
    "Wan-1.3B": [(1536, 1536), (1536, 8960), (8960, 1536)],
    "demo": [(160, 160), (160, 640), (640, 160)],
}
WARM_UP = 2


def backends(device: torch.device, weight_bits: int, rows: int, columns: int) -> dict[str, str]:
    """Part of the operator → what computes it here, and why not something else."""
    declined = why_not_int_mm(device, weight_bits, rows, columns)
    missing = native.why_not(device, torch.bfloat16)
    around = f"native code, {native.instruction_set()}" if missing is None else f"plain torch: native code {missing}"
    return {
        "quantize, unpack, scale": around,
        "product": "torch._int_mm" if declined is None else f"float64 definition: {declined}",
    }


def quantized(
    columns: int,
    rows_out: int,
    weight_bits: int,
    act_bits: int,
    device: str,
    generator: torch.Generator,
    transform: bool = False,
    groups: bool = False,
) -> QuantLinear:
    """A linear with random codes and a bias of zeros, and a random transform or groups if asked for."""
    factors = kronecker_factors(columns)
    scheme = SchemeSpec(
        weight_bits=weight_bits,
        act_bits=act_bits,
        channel_scale=transform,
        kronecker=transform,
        kronecker_factors={str(columns): factors} if transform else {},
        symmetric_weights=not groups,
        symmetric_acts=not groups,
        act_group_size=64 if groups else None,
        targets={},
    )
    linear = QuantLinear(columns, rows_out, True, scheme)
    half = 2 ** (weight_bits - 1)
    codes = torch.randint(-half, half, (rows_out, columns), generator=generator).to(torch.int8)
    linear.weight_packed.data = pack(codes, weight_bits)
    linear.weight_scale.data.fill_(0.01)
    linear.bias.data.zero_()
    if groups:
        linear.weight_zero_point.data.zero_()
    if transform:
        linear.input_scale.data.fill_(1.0)
        linear.input_left.data = random_orthogonal(factors[0], generator)
        linear.input_right.data = random_orthogonal(factors[1], generator)
    return linear.to(device)


@torch.inference_mode()
def compare(
    columns: int, rows_out: int, rows: int, *, weight_bits: int, act_bits: int, device: str, repeats: int
) -> dict[str, float]:
    """Median seconds of each candidate for one shape, all timed in turn: K = `columns`, N = `rows_out`, M = `rows`."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, columns, generator=generator).to(device) for n in (rows, rows_out))
    bias = torch.zeros(rows_out, device=device)
    low = [tensor.bfloat16() for tensor in (x, weight, bias)]
    plain, transformed, grouped = (
        quantized(columns, rows_out, weight_bits, act_bits, device, generator, **how)
        for how in ({}, {"transform": True}, {"groups": True})
    )
    return interleaved(
        {
            "float32": lambda: functional.linear(x, weight, bias),
            "bfloat16": lambda: functional.linear(*low),
            "quantized float32": lambda: plain(x),
            "quantized bfloat16": lambda: plain(low[0]),
            "quantized transform bfloat16": lambda: transformed(low[0]),
            "quantized groups bfloat16": lambda: grouped(low[0]),
        },
        repeats,
    )


def interleaved(
    candidates: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each, called in turn, so that what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(WARM_UP + repeats):
        for name, function in candidates.items():
            started = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= WARM_UP:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def rows_of(
    models: Sequence[str], tokens: Sequence[int], weight_bits: int, act_bits: int, device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """One row a model, shape and number of tokens M, with ratios of medians (above 1: the quantized one is faster)."""
    for model in models:
        for columns, rows_out in SHAPES[model]:
            for rows in tokens:
                seconds = compare(
                    columns,
                    rows_out,
                    rows,
                    weight_bits=weight_bits,
                    act_bits=act_bits,
                    device=device,
                    repeats=repeats,
                )
                ratios = {
                    "over float32": seconds["float32"] / seconds["quantized float32"],
                    "over bfloat16": seconds["bfloat16"] / seconds["quantized bfloat16"],
                    "with transform, over bfloat16": seconds["bfloat16"] / seconds["quantized transform bfloat16"],
                    "in groups, over bfloat16": seconds["bfloat16"] / seconds["quantized groups bfloat16"],
                }
                chosen = backends(torch.device(device), weight_bits, rows_out, columns)
                shape = {"model": model, "k": columns, "n": rows_out, "m": rows}
                yield shape | {"median_seconds": seconds, "ratios": ratios, "backends": chosen}
