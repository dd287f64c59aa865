"""The backend in C: quantization with its transform in one pass, and a product that reads the weights as they are packed."""

import os

import torch
from torch import Tensor

from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.native import library
from s2q.runtime.native.library import KINDS, NATURAL, PANEL, TILES, address
from s2q.runtime.reference import InputTransform, LowRank, QuantizedInput, low_rank_input

# Values of the branch's output [M, N] that are made at a time.
MOST_BRANCH = 1 << 22


def quantize_rows(
    x: Tensor, transform: InputTransform, problem: Problem, layout: int, keep_values: bool = False
) -> QuantizedInput:
    """x [M, K] float32 or bfloat16, transformed and quantized, codes int8 in the order `layout` of `library`.

    In tiles, codes of up to seven bits come without their zero point, and sums of each group stand beside them.
    """
    rows, columns = x.shape
    bits, symmetric, groups = problem.acts
    parts = problem.groups
    x = x.contiguous()
    scale = torch.empty(rows, groups)
    zero = None if symmetric else torch.empty(rows, groups)
    values = torch.empty(rows, columns) if keep_values else None
    codes_columns, sums = columns, None
    if layout == TILES:
        codes_columns, sums = _width(columns, parts), torch.empty(rows, parts, dtype=torch.int32)
    codes = torch.empty(rows, codes_columns, dtype=torch.int8)
    # Kept in names until the call is over: the task holds addresses.
    channel, left, right, clip, fixed = (None if t is None else t.contiguous() for t in transform)
    n1, n2 = (0, 0) if left is None else (left.shape[0], right.shape[0])
    task = (
        *(address(x), KINDS[x.dtype], rows, columns, groups, parts),
        *(address(channel), address(left), address(right), n1, n2, address(clip), address(fixed)),
        *(bits, layout, address(codes), address(scale), address(zero), address(sums), address(values)),
    )
    library.quantize(task, library.tiles_of(rows), rows * columns * (1 + (n1 + n2) // 8))
    return QuantizedInput(codes, scale, zero, values, sums)


def _width(columns: int, parts: int) -> int:
    """Columns of a tile: each group filled up to a multiple of eight."""
    return parts * (-(-(columns // parts) // 8) * 8)


def from_tiles(codes: Tensor, columns: int, parts: int) -> Tensor:
    """int8 in tiles → int8 [M, K] in natural order."""
    rows, width = codes.shape
    tiles = max(1, library.tiles_of(rows))
    more = rows % tiles
    cut = more * (rows // tiles + 1)
    pieces = []
    for part, count in ((codes[:cut], more), (codes[cut:], tiles - more)):
        high = part.shape[0] // max(1, count)
        eights = part.reshape(count, width // 8, 2, high, 4)  # tile, eight, half, row, column of the half
        pieces.append(eights.permute(0, 3, 1, 4, 2).reshape(part.shape[0], width))
    return torch.cat(pieces).view(rows, parts, -1)[:, :, : columns // parts].reshape(rows, columns)


def to_tiles(codes: Tensor, parts: int) -> Tensor:
    """The inverse of `from_tiles`."""
    rows, columns = codes.shape
    width = _width(columns, parts)
    spread = torch.zeros(rows, parts, width // parts, dtype=torch.int8)
    spread[:, :, : columns // parts] = codes.view(rows, parts, -1)
    tiles = max(1, library.tiles_of(rows))
    more = rows % tiles
    cut = more * (rows // tiles + 1)
    pieces = []
    for part, count in ((spread[:cut], more), (spread[cut:], tiles - more)):
        high = part.shape[0] // max(1, count)
        eights = part.reshape(count, high, width // 8, 4, 2)
        pieces.append(eights.permute(0, 2, 4, 1, 3).reshape(part.shape[0], width))
    return torch.cat(pieces)


class NativeBackend:
    """See the module's docstring; memory beside the tensors is one panel of the weight a thread, 16 to 32 bytes · K."""

    name = "native"

    def missing(self) -> str | None:
        """Why the native code is not there, if it is not."""
        found = library._load()
        return found if isinstance(found, str) else None

    def about(self) -> str:
        """The instruction set."""
        return f"C, {library.instruction_set()}"

    def why_not_quantize(self, problem: Problem) -> str | None:
        """None on the CPU in float32 and bfloat16."""
        return library.why_not(problem.device, problem.dtype)

    def why_not_multiply(self, problem: Problem) -> str | None:
        """None where it is the fastest, or is demanded."""
        declined = library.why_not(problem.device, problem.dtype)
        if declined is not None or os.environ.get("S2Q_BACKEND") == self.name:
            return declined
        if library.instruction_set() == "baseline":
            return "without AVX2 its product is slower than torch._int_mm"
        plain = problem.groups == 1 and problem.symmetric_weights
        if plain and torch.cpu._is_amx_tile_supported():
            return "torch._int_mm has AMX here, the native product has not"
        return None

    def quantize_input(self, x: Tensor, transform: InputTransform, problem: Problem) -> QuantizedInput:
        """Codes in tiles, with their sums."""
        keep = problem.low_rank > 0 and not problem.low_rank_on_codes
        return quantize_rows(x, transform, problem, TILES, keep)._replace(backend=self.name)

    def multiply(
        self, inputs: QuantizedInput, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None, problem: Problem
    ) -> Tensor:
        """The product, its scales, the branch and the bias, in one pass over the output."""
        rows, columns, outputs, parts = problem.rows, problem.columns, problem.outputs, problem.groups
        if inputs.backend is None:
            inputs = _own(inputs, problem)
        out = torch.empty(rows, outputs, dtype=problem.dtype)
        if bias is not None and bias.dtype not in KINDS:
            bias = bias.float()
        packed, scale, zero_point, bits = weight
        packed, scale = packed.contiguous(), scale.contiguous()
        zero_point = None if zero_point is None else zero_point.contiguous()
        zero = inputs.zero if problem.acts.bits == 8 else None
        weighed = (
            *(columns, outputs, problem.acts.groups, parts, address(packed), packed.shape[1], bits),
            *(address(scale), scale.shape[1], address(zero_point)),
            *(address(bias), 0 if bias is None else KINDS[bias.dtype]),
        )
        panels, tiles = -(-outputs // PANEL), library.tiles_of(rows)
        own = (address(inputs.codes), address(inputs.scale), address(zero), address(inputs.sums), rows)

        def run(first: int, last: int, branch: int) -> None:
            task = (*own, *weighed, branch, address(out), KINDS[out.dtype])
            library.multiply(task, first, last, panels, (last - first) * library.TILE * outputs * columns // 64)

        if low_rank is None:
            run(0, tiles, 0)
            return out
        middle = low_rank_input(self.natural(inputs, problem) if low_rank.on_codes else inputs, low_rank)
        up = low_rank.up.float().mT
        step = max(1, MOST_BRANCH // (outputs * library.TILE))
        for first in range(0, tiles, step):
            last = min(first + step, tiles)
            start, stop = library.tile_start(rows, first), library.tile_start(rows, last)
            branch = middle[start:stop] @ up
            # As if the rows before were there too.
            run(first, last, address(branch) - start * outputs * branch.element_size())
        return out

    def natural(self, inputs: QuantizedInput, problem: Problem) -> QuantizedInput:
        """Out of the tiles, the zero points put back."""
        codes = from_tiles(inputs.codes, problem.columns, problem.groups)
        if inputs.zero is not None and problem.acts.bits < 8:
            zero = inputs.zero.to(torch.int8).repeat_interleave(problem.columns // problem.acts.groups, 1)
            codes = codes + zero
        return QuantizedInput(codes, inputs.scale, inputs.zero, inputs.values)


def _own(inputs: QuantizedInput, problem: Problem) -> QuantizedInput:
    """An input in natural order as `quantize_rows` would have made it."""
    parts, codes, zero = problem.groups, inputs.codes, inputs.zero
    whole = codes.int()
    if zero is not None:
        whole = whole - zero.int().repeat_interleave(problem.columns // problem.acts.groups, 1)
    sums = whole.view(problem.rows, parts, -1).sum(-1, dtype=torch.int32)
    tiles = to_tiles(codes if problem.acts.bits == 8 else whole.to(torch.int8), parts)
    return QuantizedInput(tiles, inputs.scale.contiguous(), zero, inputs.values, sums)
