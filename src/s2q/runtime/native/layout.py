"""How codes stand in memory for the native product, and what else follows from a problem alone."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.packing import packed_width
from s2q.runtime.backend import Problem
from s2q.runtime.native import library
from s2q.runtime.native.library import ELEVEN, KINDS, PANEL, SHIFTED, SHIFTED_TILE, SIDE, SQUARES, STEP, TILE, TILES


class Plan(NamedTuple):
    """What follows from a problem alone, worked out once: M rows, G groups of the tokens and P of the product.

    An input in tiles is one piece of memory, which is one allocation a call; the offsets in it are in bytes.
    """

    zero: int
    """float32 [M, G], behind the step sizes, which come first"""
    sums: int
    """int32 [M, P], Σ (code − zero), if the layout is TILES"""
    codes: int
    """int8 [M, K in tiles]; codes of up to seven bits stand without their zero point"""
    end: int
    layout: int
    tiles: int
    panels: int
    quantize_work: int
    multiply_work: int
    """of a tile"""
    multiply_task: bytes
    """the first eleven fields"""


def plan_of(problem: Problem) -> Plan:
    """The plan of a problem, worked out once for each product that may be in use."""
    key = "native, squares" if library.takes_squares() else "native"
    plan = problem.notes.get(key)
    if plan is None:
        _, dtype, rows, columns, outputs, (_, symmetric, groups), bits, *_ = problem
        parts, (n1, n2) = problem.groups, problem.kronecker or (0, 0)
        zero = 4 * rows * groups
        sums = zero if symmetric else 2 * zero
        # Where lanes.h says so.
        shifted = bits == 4 and parts > 1 and columns // parts % 8 == 0
        layout, tile = (SHIFTED, SHIFTED_TILE) if shifted else (TILES, TILE)
        size = rows * _width(columns, parts, 8)
        if in_squares(problem):
            layout, tile = SQUARES, SIDE
            size = -(-rows // SIDE) * SIDE * _width(columns, parts, STEP)
        tiles = -(-rows // tile)
        codes = -(-(sums + (4 * rows * parts if layout == TILES else 0)) // 64) * 64
        words = packed_width(columns, bits)
        known = (rows, columns, outputs, groups, parts, words, bits, problem.weight_groups, KINDS[dtype])
        plan = problem.notes[key] = Plan(
            *(zero, sums, codes, codes + size, layout, tiles, -(-outputs // PANEL)),
            *(rows * columns * (1 + (n1 + n2) // 8), tile * outputs * columns // 64),
            ELEVEN.pack(*known, problem.gelu_tanh, layout),
        )
    return plan


def in_squares(problem: Problem) -> bool:
    """Whether the product that is used here takes SQUARES, they hold these codes, and are not mostly empty."""
    length = problem.columns // problem.groups
    filled = length % 8 == 0 and (problem.groups == 1 or 2 * length > STEP)
    without_zero = problem.acts.symmetric or problem.acts.bits < 8
    fits = problem.weight_bits == 4 and filled and without_zero and problem.rows >= SIDE
    return fits and library.takes_squares()


def _width(columns: int, parts: int, multiple: int) -> int:
    """Columns of a row, each group filled up: to eights in tiles, to whole squares in those."""
    return parts * (-(-(columns // parts) // multiple) * multiple)


def _by_height(lines: Tensor, plan: Plan) -> Iterator[tuple[Tensor, int, int]]:
    """The rows of the taller tiles, then those of the others: [·, width], how many tiles, and rows of each."""
    rows, tiles = lines.shape[0], max(1, plan.tiles)
    more = rows % tiles
    cut = more * (rows // tiles + 1)
    for part, count in ((lines[:cut], more), (lines[cut:], tiles - more)):
        yield part, count, part.shape[0] // max(1, count)


def first_row(rows: int, plan: Plan, tile: int) -> int:
    """The first row of a tile."""
    return min(rows, tile * SIDE) if plan.layout == SQUARES else library.tile_start(rows, plan.tiles, tile)


def from_tiles(codes: Tensor, rows: int, columns: int, parts: int, plan: Plan) -> Tensor:
    """int8 in tiles → int8 [M, K] in natural order."""
    if plan.layout == SQUARES:
        # Tile, step, row, eight, half, column of the half.
        squares = codes.view(plan.tiles, -1, SIDE, STEP // 8, 2, 4)
        natural = squares.permute(0, 2, 1, 3, 5, 4).reshape(plan.tiles * SIDE, parts, -1)
        return natural[:rows, :, : columns // parts].reshape(rows, columns)
    codes = codes.view(rows, -1)
    width = codes.shape[1]
    pieces = []
    for part, count, high in _by_height(codes, plan):
        eights = part.reshape(count, width // 8, 2, high, 4)  # tile, eight, half, row, column of the half
        pieces.append(eights.permute(0, 3, 1, 4, 2).reshape(part.shape[0], width))
    natural = torch.cat(pieces).view(rows, parts, -1)[:, :, : columns // parts].reshape(rows, columns)
    return natural ^ -128 if plan.layout == SHIFTED else natural


def to_tiles(codes: Tensor, parts: int, plan: Plan) -> Tensor:
    """The inverse of `from_tiles`."""
    rows, columns = codes.shape
    if plan.layout == SQUARES:
        whole = torch.zeros(plan.tiles * SIDE, parts, _width(columns, parts, STEP) // parts, dtype=torch.int8)
        whole[:rows, :, : columns // parts] = codes.view(rows, parts, -1)
        return whole.view(plan.tiles, SIDE, -1, STEP // 8, 4, 2).permute(0, 2, 1, 3, 5, 4)
    width = _width(columns, parts, 8)
    spread = torch.zeros(rows, parts, width // parts, dtype=torch.int8)
    # 128 is added in the byte that a code has.
    spread[:, :, : columns // parts] = (codes ^ -128 if plan.layout == SHIFTED else codes).view(rows, parts, -1)
    pieces = []
    for part, count, high in _by_height(spread, plan):
        eights = part.reshape(count, high, width // 8, 4, 2)
        pieces.append(eights.permute(0, 2, 4, 1, 3).reshape(part.shape[0], width))
    return torch.cat(pieces)
