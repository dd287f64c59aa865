"""How long calibration would take on this machine, from shapes alone."""

import math
import time
from collections import Counter
from functools import cache

import torch
from torch import nn

from s2q.models.family import Family
from s2q.models.geometry import Geometry
from s2q.numerics.gptq import STEPS_TRIED
from s2q.recipe import GptqSpec, Recipe

# Measured on the demo and on tiny models: what a training step costs over three forwards, and what Python costs a linear.
TRAINING_FORWARDS = 3.5
SECONDS_A_CALL = 60e-6
# What Python and the small matrices of the transforms cost a training step, whatever the width: measured on the demo.
SECONDS_A_STEP = 0.02
# What reading, rounding, packing, checking and writing cost a weight of the blocks: benchmarks/real_size.py measured 906 s for
# HunyuanVideo and 416 s for CogVideoX-5B, with rtn, on one thread.
SECONDS_A_WEIGHT = 7e-8
# Seconds of measuring after which a product is not repeated: what is slow is steady.
LONG_ENOUGH = 0.2


def expected_seconds(
    model: nn.Module, family: Family, recipe: Recipe, sizes: Geometry, device: str, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Stage → seconds, with calibration what is read, rounded and written.

    A forward is timed as its linears and its attention, with random weights.

    Args:
        model: on the meta device.
        dtype: that the pipeline runs in. Blocks are calibrated in float32, whatever it is.
    """
    seconds = dict.fromkeys(("trajectories", "selection", "token_weights", "calibration"), 0.0)
    weights = sum(p.numel() for _, block in family.blocks(model) for p in block.parameters())
    seconds["calibration"] = SECONDS_A_WEIGHT * weights
    if not recipe.needs_samples:
        return seconds
    kinds = [kind for attribute in family.block_lists if len(kind := getattr(model, attribute))]

    def forward_in(kept: torch.dtype) -> float:
        return sizes.branches * sum(len(kind) * _block_seconds(kind[0], family, sizes, device, kept) for kind in kinds)

    pipeline_forward, forward = forward_in(dtype), forward_in(torch.float32)
    seconds["trajectories"] = recipe.sampler.prompts * sizes.steps * pipeline_forward
    seconds["selection"] = 0.01 * seconds["trajectories"]
    if recipe.uses_token_weights:
        seconds["token_weights"] = recipe.sampler.count * 1.5 * pipeline_forward
    seconds["calibration"] += recipe.sampler.count * 5 * forward
    if recipe.uses_gptq:
        seconds["calibration"] += sum(
            len(kind) * _rounding_seconds(kind[0], family, recipe.gptq, device) for kind in kinds
        )
    if recipe.trains:
        passes = recipe.sampler.count * recipe.optim.epochs
        training_steps = sum(map(len, kinds)) * passes / recipe.optim.batch_size
        seconds["calibration"] += passes * TRAINING_FORWARDS * forward + training_steps * SECONDS_A_STEP
    return seconds


def _block_seconds(block: nn.Module, family: Family, sizes: Geometry, device: str, dtype: torch.dtype) -> float:
    """One forward of a block for one guidance branch."""
    linears = Counter(
        (module.out_features, module.in_features, family.sees_text_alone(name))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not family.is_modulation(name)
    )
    rows = min(sizes.tokens, 256)
    seconds = SECONDS_A_CALL * 4 * linears.total()
    for (rows_out, columns, text), count in linears.items():
        all_rows = sizes.text if text else sizes.tokens
        seconds += count * _time_linear(rows_out, columns, rows, device, dtype) * all_rows / rows
    seen = sizes.tokens + (0 if sizes.text_is_joined else sizes.text)
    return seconds + _time_attention(token_width(block, family), rows, device, dtype) * sizes.tokens * seen / rows**2


def _rounding_seconds(block: nn.Module, family: Family, gptq: GptqSpec, device: str) -> float:
    """GPTQ of a block: a factor for each input, K³/3 operations slower by half than a product's, and rows of its linears."""
    tries = len(STEPS_TRIED) if gptq.step_search else 1
    operations = 0.0
    for group in family.groups(block):
        linears = [block.get_submodule(name) for name in group]
        columns, outputs = linears[0].in_features, sum(linear.out_features for linear in linears)
        operations += columns**3 / 2 + 2 * tries * outputs * columns**2
    return operations * _time_product(device)


@cache
def _time_product(device: str, side: int = 1024) -> float:
    """Seconds of an operation of a product in float64, in which GPTQ computes."""
    x = torch.randn(side, side, dtype=torch.float64, device=device)
    return _timed(lambda: x @ x) / (2 * side**3)


def _timed(function, repeats: int = 3) -> float:
    function()
    best, spent = math.inf, 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds), spent + seconds
        if spent > LONG_ENOUGH:
            break
    return best


@cache  # blocks of several kinds have linears of the same shape
def _time_linear(rows_out: int, columns: int, rows: int, device: str, dtype: torch.dtype) -> float:
    x, weight = (torch.randn(count, columns, device=device, dtype=dtype) for count in (rows, rows_out))
    return _timed(lambda: nn.functional.linear(x, weight))


@cache
def _time_attention(width: int, rows: int, device: str, dtype: torch.dtype) -> float:
    heads = max(1, width // 64)
    q = torch.randn(1, heads, rows, 64, device=device, dtype=dtype)
    return _timed(lambda: nn.functional.scaled_dot_product_attention(q, q, q))


def token_width(block: nn.Module, family: Family) -> int:
    """Channels of a token."""
    first = next(group[0] for group in family.groups(block) if not family.is_modulation(group[0]))
    return block.get_submodule(first).in_features
