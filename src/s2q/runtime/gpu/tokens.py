"""Kernels that transform tokens and round them, and their launches.

The Kronecker transform is two products: x·(I ⊗ P2) takes all rows of n2 values, of every token, as one matrix, so that only
n2 is padded; (P1ᵀ ⊗ I) then takes a token as the matrix [n1, n2], held whole by one program, which rounds it in the same pass
if the token has one group. Both sum in float32, from three products of TensorFloat-32 parts (`tf32x3`), which is about
float32's accuracy. Division and rounding are those of IEEE, so that steps and codes follow from x̂ bit for bit as
`s2q.runtime.reference` defines them. Hadamard blocks are additions in the registers of the pass that rounds.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2q.numerics.quantizer import integer_range
from s2q.runtime.gpu.launch import EXACT, on_device, padded, pointer
from s2q.runtime.reference import ActFormat, InputTransform, QuantizedInput, transform_input

LARGEST_TOKEN = 1 << 15
"""Most values of a token, padded as its program pads it, or of a group."""
# Values of several small groups that one program rounds.
TILE = 2048
# Columns of P2 that one program makes: the most that waste at most a fifth.
WIDTHS = (128, 64, 32, 16)
FLAT_ROWS = 64


@triton.jit
def _round(x):
    """Halves to even; beyond ±2^22 it is clamped. A sum with 1.5 · 2^23 has no place for a fraction."""
    x = tl.minimum(tl.maximum(x, -4194304.0), 4194304.0)
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _grid(low, high, clip, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Δ and z of groups whose values lie between `low` and `high`; z is 0 on symmetric grids."""
    if SYMMETRIC:
        scale = tl.div_rn(clip * tl.maximum(high, -low), LARGEST)
        scale = tl.where(scale > 0, scale, 1.0)
        zero = tl.zeros_like(scale)
    else:
        low = tl.minimum(low, 0.0)
        high = tl.maximum(high, 0.0)
        scale = tl.div_rn(clip * (high - low), LARGEST - SMALLEST)
        scale = tl.where(scale > 0, scale, 1.0)
        zero = _round(tl.div_rn(-clip * low, scale)) + SMALLEST
        zero = tl.minimum(tl.maximum(zero, SMALLEST), LARGEST)
    return scale, zero


@triton.jit
def _codes(x, scale, zero, SMALLEST: tl.constexpr, LARGEST: tl.constexpr):
    whole = _round(tl.div_rn(x, scale)) + zero
    return tl.minimum(tl.maximum(whole, SMALLEST), LARGEST).to(tl.int8)


@triton.jit(do_not_specialize=["rows"])
def _right_kernel(x, channel, right, out, rows, N1: tl.constexpr, N2: tl.constexpr, CHANNEL: tl.constexpr,
                  BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """out float32 [M·n1, n2] = (x · c) P2, x read as [M·n1, n2]."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64)[:, None] * N2
    here = (row < rows)[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(0, N2, STEP):
        k = start + tl.arange(0, STEP)
        tile = tl.load(x + at + k[None, :], here & (k < N2)[None, :], 0.0).to(tl.float32)
        if CHANNEL:
            tile *= tl.load(channel + (row % N1)[:, None] * N2 + k[None, :], here & (k < N2)[None, :], 0.0)
        factor = tl.load(right + k[:, None] * N2 + column[None, :], (k < N2)[:, None] & (column < N2)[None, :], 0.0)
        total = tl.dot(tile, factor, total, input_precision="tf32x3")
    tl.store(out + at + column[None, :], total, here & (column < N2)[None, :])


@triton.jit
def _left_kernel(x, left, clip, values, codes, scale, zero,
                 N1: tl.constexpr, N2: tl.constexpr, PADDED_1: tl.constexpr, PADDED_2: tl.constexpr,
                 STEP: tl.constexpr, KEEP: tl.constexpr, ROUND: tl.constexpr, CLIP: tl.constexpr,
                 SMALLEST: tl.constexpr, LARGEST: tl.constexpr, SYMMETRIC: tl.constexpr):  # fmt: skip
    """Program m: x̂ = P1ᵀ x[m] of x float32 [M, n1, n2], kept and/or rounded with one step for the token."""
    token = tl.program_id(0)
    x += token.to(tl.int64) * N1 * N2
    i = tl.arange(0, PADDED_1)
    j = tl.arange(0, PADDED_2)
    total = tl.zeros((PADDED_1, PADDED_2), tl.float32)
    for start in range(0, N1, STEP):
        k = start + tl.arange(0, STEP)
        factor = tl.load(left + k[None, :] * N1 + i[:, None], (k < N1)[None, :] & (i < N1)[:, None], 0.0)
        tile = tl.load(x + k[:, None] * N2 + j[None, :], (k < N1)[:, None] & (j < N2)[None, :], 0.0)
        total = tl.dot(factor, tile, total, input_precision="tf32x3")
    at = token.to(tl.int64) * N1 * N2 + i[:, None] * N2 + j[None, :]
    inside = (i < N1)[:, None] & (j < N2)[None, :]
    if KEEP:
        tl.store(values + at, total, inside)
    if ROUND:
        factor_of_range = 1.0
        if CLIP:
            factor_of_range = tl.load(clip)
        low = tl.min(tl.min(total, 1), 0)
        high = tl.max(tl.max(total, 1), 0)
        bad = tl.max(tl.max((total != total).to(tl.int32), 1), 0)
        step, offset = _grid(low, high, factor_of_range, SMALLEST, LARGEST, SYMMETRIC)
        tl.store(codes + at, _codes(total, step, offset, SMALLEST, LARGEST), inside)
        tl.store(scale + token, tl.where(bad > 0, float("nan"), step))
        if not SYMMETRIC:
            tl.store(zero + token, offset)


@triton.jit
def _hadamard(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, FACTOR: tl.constexpr):
    """Stretches of 2^STAGES neighbours of `tile`, read as one row, mixed in the order of `hadamard_blocks`."""
    for stage in tl.static_range(STAGES):
        pairs = tl.reshape(tile, (ROWS * COLUMNS // (2 << stage), 2, 1 << stage))
        one, other = tl.split(tl.permute(pairs, (0, 2, 1)))
        tile = tl.reshape(tl.permute(tl.join(one + other, one - other), (0, 2, 1)), (ROWS, COLUMNS))
    return tile * FACTOR


@triton.jit
def _rows_kernel(x, channel, clip, limits, values, codes, scale, zero,
                 COLUMNS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
                 PADDED: tl.constexpr, CHANNEL: tl.constexpr, KEEP: tl.constexpr, CLIP: tl.constexpr,
                 LIMITS: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, SYMMETRIC: tl.constexpr,
                 STAGES: tl.constexpr, FACTOR: tl.constexpr):  # fmt: skip
    """Program (m, p): x̂ = x · c, in Hadamard blocks of 2^STAGES, of some groups of token m, rounded group by group."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    column = tl.arange(0, PADDED)
    own = group[:, None] * SIZE + column[None, :]
    inside = (group < GROUPS)[:, None] & (column < SIZE)[None, :]
    tile = tl.load(x + token * COLUMNS + own, inside, 0.0).to(tl.float32)
    if CHANNEL:
        tile *= tl.load(channel + own, inside, 0.0)
    if STAGES:
        tile = _hadamard(tile, BLOCK_GROUPS, PADDED, STAGES, FACTOR)
    if KEEP:
        tl.store(values + token * COLUMNS + own, tile, inside)
    factor_of_range = 1.0
    if CLIP:
        factor_of_range = tl.load(clip)
    if LIMITS:
        low = tl.zeros((BLOCK_GROUPS,), tl.float32) + tl.load(limits)
        high = tl.zeros((BLOCK_GROUPS,), tl.float32) + tl.load(limits + 1)
        # The definition takes the larger side's size, whatever the sides' signs are.
        if SYMMETRIC:
            high = tl.maximum(tl.abs(low), tl.abs(high))
            low = -high
    else:
        # Columns beyond the group's end count as zeros, which every grid contains.
        low = tl.min(tile, 1)
        high = tl.max(tile, 1)
    bad = tl.max((tile != tile).to(tl.int32), 1)
    step, offset = _grid(low, high, factor_of_range, SMALLEST, LARGEST, SYMMETRIC)
    tl.store(codes + token * COLUMNS + own, _codes(tile, step[:, None], offset[:, None], SMALLEST, LARGEST), inside)
    tl.store(scale + token * GROUPS + group, tl.where(bad > 0, float("nan"), step), group < GROUPS)
    if not SYMMETRIC:
        tl.store(zero + token * GROUPS + group, offset, group < GROUPS)


def fits(n1: int, n2: int) -> bool:
    """Whether one program can hold a token behind a Kronecker transform of these sides."""
    return padded(n1) * padded(n2) <= LARGEST_TOKEN


def _step(size: int) -> int:
    return 32 if size % 32 == 0 else 16


def _right(x: Tensor, transform: InputTransform) -> Tensor:
    """(x · c)(I ⊗ P2), float32 [M, K]."""
    n1, n2 = transform.left.shape[0], transform.right.shape[0]
    flat = x.shape[0] * n1
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    width = next((w for w in WIDTHS if -(-n2 // w) * w <= 1.2 * n2), WIDTHS[-1])
    grid = (-(-flat // FLAT_ROWS), -(-n2 // width))
    _right_kernel[grid](
        x, pointer(transform.scale, out), transform.right.contiguous(), out, flat, N1=n1, N2=n2,
        CHANNEL=transform.scale is not None, BLOCK_ROWS=FLAT_ROWS, BLOCK=width, STEP=_step(n2), num_warps=4, **EXACT,
    )  # fmt: skip
    return out


def _left(
    x: Tensor, transform: InputTransform, acts: ActFormat | None, keep: bool
) -> tuple[Tensor | None, QuantizedInput | None]:
    """(P1ᵀ ⊗ I) of x float32 [M, K]: x̂ if it is to be kept, and its codes if `acts` says how."""
    n1, n2 = transform.left.shape[0], transform.right.shape[0]
    values = torch.empty_like(x) if keep else None
    made = None if acts is None else _outputs(x, acts)
    smallest, largest = integer_range(8 if acts is None else acts.bits)
    sizes = padded(n1), padded(n2)
    _left_kernel[(x.shape[0],)](
        x, transform.left.contiguous(), pointer(transform.clip, x), pointer(values, x),
        *(x, x, x) if made is None else (made.codes, made.scale, pointer(made.zero, made.scale)),
        N1=n1, N2=n2, PADDED_1=sizes[0], PADDED_2=sizes[1], STEP=_step(n1), KEEP=keep, ROUND=made is not None,
        CLIP=transform.clip is not None, SMALLEST=float(smallest), LARGEST=float(largest),
        SYMMETRIC=acts is None or acts.symmetric, num_warps=4 if sizes[0] * sizes[1] <= 4096 else 8, **EXACT,
    )  # fmt: skip
    return values, made


def _outputs(x: Tensor, acts: ActFormat) -> QuantizedInput:
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[0], acts.groups, dtype=torch.float32, device=x.device)
    return QuantizedInput(codes, scale, None if acts.symmetric else torch.empty_like(scale))


def transform_tokens(x: Tensor, transform: InputTransform) -> Tensor:
    """x̂ of the definition, for x contiguous [M, K] and a transform that has Kronecker factors: float32 [M, K]."""
    with on_device(x):
        return _left(_right(x, transform), transform, None, keep=True)[0]


def quantize_tokens(x: Tensor, transform: InputTransform, acts: ActFormat, keep_values: bool) -> QuantizedInput:
    """The definition's `quantize_input`, for x contiguous [M, K]; `values` only if asked for."""
    if transform.hadamard and _groups_together(x.shape[1] // acts.groups, acts.groups, transform.hadamard) is None:
        x = transform_input(x, transform)
        transform = transform._replace(scale=None, hadamard=0)
    with on_device(x):
        if transform.left is None:
            return _quantize_rows(x, transform, acts, keep_values)
        x = _right(x, transform)
        whole = acts.groups == 1 and transform.range is None
        values, made = _left(x, transform, acts if whole else None, keep=keep_values or not whole)
        if made is None:
            made = _quantize_rows(values, transform._replace(scale=None), acts, False)
        return made._replace(values=values if keep_values else None)


def _groups_together(size: int, groups: int, hadamard: int) -> int | None:
    """How many groups of `size` channels one program takes; None if blocks of `hadamard` channels would not fit into it."""
    together = max(1, min(TILE // padded(size), padded(groups, 1)))
    if hadamard and size % hadamard:
        # Blocks of several groups: these must lie in the program without a gap.
        together = max(together, hadamard // size)
        return together if padded(size) == size and hadamard % size == 0 else None
    return together


def _quantize_rows(x: Tensor, transform: InputTransform, acts: ActFormat, keep: bool) -> QuantizedInput:
    rows, columns = x.shape
    size = columns // acts.groups
    block = _groups_together(size, acts.groups, transform.hadamard)
    made = _outputs(x, acts)
    values = torch.empty(x.shape, dtype=torch.float32, device=x.device) if keep else None
    smallest, largest = integer_range(acts.bits)
    _rows_kernel[(rows, -(-acts.groups // block))](
        x, pointer(transform.scale, x), pointer(transform.clip, x), pointer(transform.range, x), pointer(values, x),
        made.codes, made.scale, pointer(made.zero, made.scale),
        COLUMNS=columns, GROUPS=acts.groups, SIZE=size, BLOCK_GROUPS=block, PADDED=padded(size),
        CHANNEL=transform.scale is not None, KEEP=keep, CLIP=transform.clip is not None,
        LIMITS=transform.range is not None, SMALLEST=float(smallest), LARGEST=float(largest),
        SYMMETRIC=acts.symmetric, STAGES=max(0, transform.hadamard.bit_length() - 1),
        FACTOR=1 / math.sqrt(max(1, transform.hadamard)), num_warps=4 if size <= 4096 else 8, **EXACT,
    )  # fmt: skip
    return made._replace(values=values)
