"""Which tiles the product is tried with: timed once for each kind of shape, and kept in Triton's cache on disk."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import triton
from triton import knobs

from s2q.runtime.gpu.launch import padded


class Tile(NamedTuple):
    """What is made at a time, how deep at a time, by how many warps, and with how many stages of loads under way."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    persistent: bool = False
    """Whether a program makes one after the other, instead of one."""


LARGE = (
    Tile(128, 128, 128, 8, 3),
    Tile(128, 256, 64, 8, 3),
    Tile(256, 128, 64, 8, 3),
    Tile(128, 128, 64, 4, 4),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 64, 64, 4, 4),
)
# For GPUs on which a program is long to start, and short to run.
PERSISTENT = tuple(tile._replace(persistent=True) for tile in LARGE[:4])
SMALL = (Tile(16, 32, 128, 4, 4), Tile(16, 64, 128, 4, 4), Tile(16, 128, 64, 4, 4), Tile(32, 64, 128, 4, 4))
FLOAT = (Tile(16, 32, 64, 4, 4), Tile(16, 64, 64, 4, 3), Tile(64, 64, 32, 4, 3), Tile(128, 64, 32, 4, 3))
# Nothing can be timed in the interpreter; this one shows errors of indexing.
INTERPRETED = Tile(32, 16, 64, 4, 1)
# Hopper.
_PERSISTENT_FROM = 90
# What decides which tile is best; Triton adds the dtypes.
_KEY = ["rows_class", "outputs", "GROUPS", "SIZE", "BITS", "INTEGER", "X_ZERO", "WEIGHT_ZERO"]
# The small tiles are for fewer rows than this.
_MANY_ROWS = 128
# int8 products on tensor cores are at least this deep.
_LEAST_DEPTH = 32


def tiles_for(rows: int, size: int, integer: bool, capability: int) -> set[Tile]:
    """The tiles to try: none taller than the tokens, none deeper than a group of `size` channels.

    Args:
        capability: the GPU's, 90 for 9.0.
    """
    kind = (LARGE if rows > _MANY_ROWS else LARGE + SMALL) if integer else FLOAT
    if integer and rows > _MANY_ROWS and capability >= _PERSISTENT_FROM:
        kind += PERSISTENT
    deepest = padded(size, _LEAST_DEPTH)
    return {tile._replace(depth=min(tile.depth, deepest)) for tile in kind if tile.rows <= padded(rows)}


def _config(tile: Tile) -> triton.Config:
    blocks = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.depth}
    return triton.Config(blocks | {"PERSISTENT": tile.persistent}, num_warps=tile.warps, num_stages=tile.stages)


def _fitting(configs: list[triton.Config], arguments: Mapping[str, Any], **given: Any) -> list[triton.Config]:
    capability = triton.runtime.driver.active.get_current_target().arch
    wanted = tiles_for(arguments["rows"], given["SIZE"], given["INTEGER"], capability)
    return [config for config in configs if _tile(config) in wanted]


def _tile(config: triton.Config) -> Tile:
    rows, columns, depth, persistent = config.kwargs.values()
    return Tile(rows, columns, depth, config.num_warps, config.num_stages, persistent)


def tuned(kernel: Any) -> Any:
    """Let Triton choose among the tiles that fit."""
    if knobs.runtime.interpret:
        return triton.autotune([_config(INTERPRETED)], _KEY)(kernel)
    depths = (_LEAST_DEPTH, 64, 128)
    tiles = {
        tile._replace(depth=min(tile.depth, depth)) for tile in LARGE + PERSISTENT + SMALL + FLOAT for depth in depths
    }
    configs = [_config(tile) for tile in sorted(tiles)]
    return triton.autotune(configs, _KEY, prune_configs_by={"early_config_prune": _fitting}, cache_results=True)(kernel)
