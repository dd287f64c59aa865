"""The quantized linear against `torch.nn.functional.linear`, interleaved in one process: who computes it, and how fast.

Random weights and inputs: this is about speed. Every candidate is a complete linear, from float input to float output with
bias, under one of `SCHEMES`. A transform is done for one linear alone; q, k and v of a model share theirs.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from s2q.checkpoint import SchemeSpec
from s2q.numerics.hadamard import hadamard_block
from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.packing import pack
from s2q.runtime.dispatch import choose, quantize_input
from s2q.runtime.linear import QuantLinear
from s2q.runtime.native import library

# Widths (K, N) of the blocks' linears.
SHAPES = {
    "CogVideoX-2B": [(1920, 1920), (1920, 7680), (7680, 1920)],
    "CogVideoX-5B": [(3072, 3072), (3072, 12288), (12288, 3072)],
    "Wan-1.3B": [(1536, 1536), (1536, 8960), (8960, 1536)],
    "demo": [(160, 160), (160, 640), (640, 160)],
}
# What a linear may have beside its codes, as fields of its scheme; the first is the plain one. The recipe s2q_plus makes
# Hadamard blocks, as long as the width allows, at 8 bits, and asymmetric groups of tokens behind a transform at fewer.
TRANSFORM = {"channel_scale": True, "kronecker": True, "input_clip": True}
GROUPS = {"symmetric_weights": False, "symmetric_acts": False, "act_group_size": 64}
BLOCKS = {"channel_scale": True, "hadamard_block": 128, "input_clip": True, "symmetric_weights": False}
SCHEMES: dict[str, dict[str, Any]] = {
    "": {},
    "transform": TRANSFORM,
    "groups": GROUPS,
    "transform and groups": TRANSFORM | GROUPS,
    "Hadamard blocks": BLOCKS,
    "Hadamard blocks and groups": BLOCKS | GROUPS,
}
WARM_UP = 2
LEAST_SECONDS = 1e-3
"""What a measurement of the peak takes at least."""


def scheme_of(columns: int, weight_bits: int, act_bits: int, fields: dict[str, Any]) -> SchemeSpec:
    """The scheme of a linear of K = `columns` inputs with the `fields` of one of `SCHEMES`."""
    if "hadamard_block" in fields:
        fields = fields | {"hadamard_block": hadamard_block(columns, fields["hadamard_block"])}
    known = {str(columns): kronecker_factors(columns)} if fields.get("kronecker") else {}
    return SchemeSpec(weight_bits=weight_bits, act_bits=act_bits, kronecker_factors=known, targets={}, **fields)


def quantized(
    columns: int, rows_out: int, weight_bits: int, act_bits: int, device: str, generator: torch.Generator, **fields: Any
) -> QuantLinear:
    """A linear with random codes and a bias of zeros; `fields` are those of its scheme."""
    factors, scheme = kronecker_factors(columns), scheme_of(columns, weight_bits, act_bits, fields)
    linear = QuantLinear(columns, rows_out, True, scheme)
    half = 2 ** (weight_bits - 1)
    codes = torch.randint(-half, half, (rows_out, columns), generator=generator).to(torch.int8)
    values = {"weight_packed": pack(codes, weight_bits), "weight_scale": 0.01, "bias": 0.0, "input_scale": 1.0}
    values |= {"input_clip": 1.0, "weight_zero_point": 0, "weight_shape": torch.tensor([rows_out, columns])}
    for name, n in (("input_left", factors[0]), ("input_right", factors[1])):
        if scheme.kronecker:
            values[name] = random_orthogonal(n, generator)
    for name, parameter in linear.named_parameters():
        value = values[name]
        parameter.data = value if isinstance(value, Tensor) else torch.full_like(parameter, value)
    return linear.to(device)


def backends(columns: int, rows_out: int, rows: int, weight_bits: int, act_bits: int, device: str) -> dict[str, str]:
    """Scheme → who computes it here, and why those before them do not: K = `columns`, N = `rows_out`, M = `rows`."""
    told = {}
    for name, fields in SCHEMES.items():
        scheme = scheme_of(columns, weight_bits, act_bits, fields)
        linear = QuantLinear(columns, rows_out, True, scheme, device="meta")
        problem = linear.problem(torch.empty(rows, columns, dtype=torch.bfloat16, device="meta"))
        choice = choose(problem._replace(device=torch.device(device)))
        who = f"{choice.multiply.name} ({choice.multiply.about()})"
        if choice.quantize is not choice.multiply:
            who += f", quantized by {choice.quantize.name} ({choice.quantize.about()})"
        told[name or "plain"] = "; ".join((who, *choice.declined))
    return told


@torch.inference_mode()
def compare(
    columns: int, rows_out: int, rows: int, *, weight_bits: int, act_bits: int, device: str, repeats: int
) -> dict[str, float]:
    """Median seconds of each candidate for one shape, all timed in turn: K = `columns`, N = `rows_out`, M = `rows`.

    "peak" is what the products alone would take at this device's peak, see `peak`.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, columns, generator=generator).to(device) for n in (rows, rows_out))
    bias = torch.zeros(rows_out, device=device)
    low = [tensor.bfloat16() for tensor in (x, weight, bias)]
    candidates: dict[str, Callable[[], Any]] = {
        "float32": lambda: functional.linear(x, weight, bias),
        "bfloat16": lambda: functional.linear(*low),
    }
    for name, fields in SCHEMES.items():
        linear = quantized(columns, rows_out, weight_bits, act_bits, device, generator, **fields)
        for kind, tokens in (("float32", x), ("bfloat16", low[0])):
            candidates[_timed(name, kind)] = partial(linear, tokens)
        choice = choose(linear.problem(low[0]))
        candidates[f"{_timed(name, 'bfloat16')}, input alone"] = partial(
            quantize_input, choice, low[0], linear.input_transform()
        )
    operations, candidates["peak"] = peak(device)
    seconds = interleaved(candidates, repeats)
    return seconds | {"peak": seconds["peak"] * 2 * rows * columns * rows_out / operations}


def peak(device: str) -> tuple[int, Callable[[], Any]]:
    """Something that makes int8 products as fast as this device can, and how many operations they are.

    On a CPU native code makes them out of registers; where there is none, and on a GPU, a large `torch._int_mm` does.
    """
    if device == "cpu" and library.instruction_set() is not None:
        threads, rounds = torch.get_num_threads(), 1
        # The quickest of some: the first starts threads, and any may be held up.
        while min(_seconds(partial(library.peak, rounds, threads)) for _ in range(3)) < LEAST_SECONDS:
            rounds *= 2
        return library.peak(rounds, threads), partial(library.peak, rounds, threads)
    size = 1024 if device == "cpu" else 8192
    codes = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
    return 2 * size**3, partial(torch._int_mm, codes, codes.mT)


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _timed(scheme: str, kind: str) -> str:
    return " ".join(filter(None, ("quantized", scheme, kind)))


def interleaved(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn, so that what else the machine does meets all of them.

    On one thread of a CPU they are seconds of the processor, which other programs on the machine disturb less.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.process_time if alone else time.perf_counter
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
    """One row a model, shape and number of tokens M, with ratios of medians (above 1: the quantized one is faster), and what
    share of the device's peak of integer products each scheme reaches with bfloat16 tokens, all it does beside them included;
    and what share of its time it spends on transforming and quantizing its input.
    """
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
                }
                for name in filter(None, SCHEMES):
                    for kind in ("float32", "bfloat16"):
                        ratios[f"{name}, over {kind}"] = seconds[kind] / seconds[_timed(name, kind)]
                shape = {"model": model, "k": columns, "n": rows_out, "m": rows}
                shares = {name: seconds["peak"] / seconds[_timed(name, "bfloat16")] for name in SCHEMES}
                chosen = backends(columns, rows_out, rows, weight_bits, act_bits, device)
                inputs = {
                    name: seconds[f"{_timed(name, 'bfloat16')}, input alone"] / seconds[_timed(name, "bfloat16")]
                    for name in SCHEMES
                }
                speed = 2e-9 * rows * columns * rows_out / seconds["peak"]
                made = {"median_seconds": seconds, "ratios": ratios, "shares_of_peak": shares, "peak_gops": speed}
                yield shape | made | {"shares_of_input": inputs, "backends": chosen}
