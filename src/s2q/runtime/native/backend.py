"""The backend in C: quantization with its transform in one pass, and a product that reads the weights as they are packed."""

import os
from typing import NamedTuple

import torch
from torch import Tensor

from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.native import library
from s2q.runtime.native.layout import first_row, from_tiles, in_squares, plan_of, to_tiles
from s2q.runtime.native.library import ELEVEN, KINDS, NATURAL, TEN, TILE, TILES, address
from s2q.runtime.reference import InputTransform, LowRank, QuantizedInput, low_rank_input

# Values of the branch's output [M, N] that are made at a time.
MOST_BRANCH = 1 << 22


class TiledInput(NamedTuple):
    """A quantized input as the native product takes it."""

    memory: Tensor
    """int8 [plan.end]"""
    values: Tensor | None
    """float32 [M, K], x̂ before rounding, kept for low-rank branches that take it"""
    backend: str = "native"


def quantize_rows(x: Tensor, transform: InputTransform, problem: Problem, keep_values: bool = False) -> QuantizedInput:
    """x [M, K] float32 or bfloat16, transformed and quantized, codes in their natural order."""
    rows, columns = x.shape
    groups = problem.acts.groups
    scale = torch.empty(rows, groups)
    zero = None if problem.acts.symmetric else torch.empty(rows, groups)
    values = torch.empty(rows, columns) if keep_values else None
    codes = torch.empty(rows, columns, dtype=torch.int8)
    _quantize(x, transform, problem, NATURAL, address(codes), address(scale), address(zero), 0, address(values))
    return QuantizedInput(codes, scale, zero, values)


def _quantize(x: Tensor, transform: InputTransform, problem: Problem, layout: int, *targets: int) -> None:
    """Targets: addresses of codes, scale, zero, sums and values."""
    plan, notes = plan_of(problem), problem.notes
    known = notes.get(layout)
    if known is None:
        (bits, _, groups), (n1, n2) = problem.acts, problem.kronecker or (0, 0)
        sizes = (KINDS[problem.dtype], problem.rows, problem.columns, groups, problem.groups, n1, n2, problem.hadamard)
        known = notes[layout] = TEN.pack(*sizes, bits, layout)
    # Kept in names until the call is over: the task holds addresses.
    x, tensors = x.contiguous(), [t if t is None or t.is_contiguous() else t.contiguous() for t in transform.tensors()]
    given = [0 if t is None else t.data_ptr() for t in tensors]
    tiles = plan.tiles if layout == plan.layout else -(-problem.rows // TILE)
    library.quantize(known + ELEVEN.pack(x.data_ptr(), *given, *targets), tiles, plan.quantize_work)


class NativeBackend:
    """See the module's docstring; memory beside the tensors is one panel of the weight a thread, 16 to 32 bytes · K."""

    name = "native"

    def missing(self) -> str | None:
        """Why the native code is not there, if it is not."""
        found = library.load()
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
        if plain and not in_squares(problem) and torch.cpu._is_amx_tile_supported():
            return (
                "torch._int_mm has AMX here, which the native product has for 4-bit weights and 16 rows or more alone"
            )
        return None

    def quantize_input(self, x: Tensor, transform: InputTransform, problem: Problem) -> TiledInput:
        """Codes in tiles, with their sums."""
        plan = plan_of(problem)
        memory = torch.empty(plan.end, dtype=torch.int8)
        values = None
        if problem.low_rank and not problem.low_rank_on_codes:
            values = torch.empty(problem.rows, problem.columns)
        base = memory.data_ptr()
        zero = 0 if problem.acts.symmetric else base + plan.zero
        own = (base + plan.codes, base, zero, base + plan.sums, address(values))
        _quantize(x, transform, problem, plan.layout, *own)
        return TiledInput(memory, values)

    def multiply(
        self,
        inputs: TiledInput | QuantizedInput,
        weight: PackedWeight,
        bias: Tensor | None,
        low_rank: LowRank | None,
        problem: Problem,
    ) -> Tensor:
        """The product, its scales, the branch and the bias, in one pass over the output."""
        plan, rows, outputs = plan_of(problem), problem.rows, problem.outputs
        if inputs.backend is None:
            inputs = _tiled(inputs, problem)
        out = torch.empty(rows, outputs, dtype=problem.dtype)
        if bias is not None and bias.dtype not in KINDS:
            bias = bias.float()
        # Kept in names until the call is over: the task holds addresses.
        packed, scale, zero_point = weight.packed.contiguous(), weight.scale.contiguous(), weight.zero_point
        if zero_point is not None:
            zero_point = zero_point.contiguous()
        base = inputs.memory.data_ptr()
        bits, symmetric, _ = problem.acts
        own = (
            *(base + plan.codes, base, base + plan.zero if bits == 8 and not symmetric else 0, base + plan.sums),
            *(packed.data_ptr(), scale.data_ptr(), address(zero_point)),
            *((0, 0) if bias is None else (bias.data_ptr(), KINDS[bias.dtype])),
        )

        def run(first: int, last: int, branch: int) -> None:
            task = plan.multiply_task + ELEVEN.pack(*own, branch, out.data_ptr())
            library.multiply(task, first, last, plan.panels, (last - first) * plan.multiply_work)

        if low_rank is None:
            run(0, plan.tiles, 0)
            return out
        values = self.natural(inputs, problem) if low_rank.on_codes else inputs
        middle, up = low_rank_input(values, low_rank), low_rank.up.float().mT
        step = max(1, MOST_BRANCH * plan.tiles // max(1, outputs * rows))
        for first in range(0, plan.tiles, step):
            last = min(first + step, plan.tiles)
            start, stop = (first_row(rows, plan, index) for index in (first, last))
            branch = middle[start:stop] @ up
            # As if the rows before were there too.
            run(first, last, branch.data_ptr() - start * outputs * branch.element_size())
        return out

    def natural(self, inputs: TiledInput, problem: Problem) -> QuantizedInput:
        """Out of the tiles, the zero points put back."""
        memory, plan = inputs.memory, plan_of(problem)
        bits, symmetric, groups = problem.acts
        rows, columns = problem.rows, problem.columns
        codes = from_tiles(memory[plan.codes :], rows, columns, problem.groups, plan)
        scale = memory[: plan.zero].view(torch.float32).view(rows, groups)
        if symmetric:
            return QuantizedInput(codes, scale, None, inputs.values)
        zero = memory[plan.zero : 2 * plan.zero].view(torch.float32).view(rows, groups)
        if bits < 8:
            codes = codes + zero.to(torch.int8).repeat_interleave(columns // groups, 1)
        return QuantizedInput(codes, scale, zero, inputs.values)


def _tiled(inputs: QuantizedInput, problem: Problem) -> TiledInput:
    """An input in natural order as `NativeBackend.quantize_input` would have made it."""
    bits, symmetric, groups = problem.acts
    rows, parts, plan = problem.rows, problem.groups, plan_of(problem)
    whole = inputs.codes.int()
    if not symmetric:
        whole = whole - inputs.zero.int().repeat_interleave(problem.columns // groups, 1)
    sums = whole.view(rows, parts, -1).sum(-1, dtype=torch.int32)
    codes = to_tiles(inputs.codes if bits == 8 else whole.to(torch.int8), parts, plan)
    memory = torch.empty(plan.end, dtype=torch.int8)
    pieces = [(0, inputs.scale), (plan.codes, codes)]
    if plan.layout == TILES:
        pieces.append((plan.sums, sums))
    if not symmetric:
        pieces.append((plan.zero, inputs.zero))
    for start, piece in pieces:
        data = piece.contiguous().view(torch.int8).flatten()
        memory[start : start + data.numel()] = data
    return TiledInput(memory, inputs.values)
