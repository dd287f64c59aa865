"""Which tiles the product is tried with: measured once for each shape, and kept in Triton's cache on disk."""

from typing import Any

import triton
from triton import knobs

from s2q.runtime.gpu.launch import padded

# rows, columns, depth of a tile; warps; stages of loads under way
_LARGE = [(128, 128, 128, 8, 3), (128, 256, 64, 8, 3), (256, 128, 64, 8, 3), (128, 128, 64, 4, 4), (64, 128, 128, 4, 4)]
_SMALL = [(16, 32, 128, 4, 4), (16, 64, 128, 4, 4), (16, 128, 64, 4, 4), (32, 64, 128, 4, 4), (64, 64, 64, 4, 4)]
_FLOAT = [(16, 32, 64, 4, 4), (16, 64, 64, 4, 3), (64, 64, 32, 4, 3), (128, 64, 32, 4, 3)]
# Nothing can be timed in the interpreter; an odd mixture shows errors of indexing.
_INTERPRETED = [(32, 16, 64, 4, 1)]
# What decides which tile is best.
_KEY = ["rows_class", "outputs", "GROUPS", "SIZE", "BITS", "INTEGER", "X_ZERO", "WEIGHT_ZERO"]


def _config(rows: int, columns: int, depth: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth}, num_warps=warps, num_stages=stages)


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **given: Any) -> list[triton.Config]:
    """Tiles no taller than the tokens and, at small groups, no deeper than a group."""
    rows, size = padded(arguments["rows"]), padded(given["SIZE"], 32)
    kind = _LARGE + _SMALL if given["INTEGER"] else _FLOAT
    wanted = {(m, n, min(k, size), warps, stages) for m, n, k, warps, stages in kind if m <= rows}
    if rows > 128:
        wanted -= {tile for tile in wanted if tile[0] < 64}
    return [config for config in configs if _tile(config) in wanted]


def _tile(config: triton.Config) -> tuple[int, int, int, int, int]:
    return (*config.kwargs.values(), config.num_warps, config.num_stages)


def tuned(kernel: Any) -> Any:
    """Let Triton choose among the tiles that fit."""
    if knobs.runtime.interpret:
        return triton.autotune([_config(*tile) for tile in _INTERPRETED], _KEY)(kernel)
    deep = {(m, n, min(k, depth), w, s) for m, n, k, w, s in _LARGE + _SMALL + _FLOAT for depth in (32, 64, 128)}
    configs = [_config(*tile) for tile in sorted(deep)]
    return triton.autotune(configs, _KEY, prune_configs_by={"early_config_prune": _fitting}, cache_results=True)(kernel)
