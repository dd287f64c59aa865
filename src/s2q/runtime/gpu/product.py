"""The kernel that multiplies tokens with packed weights, and its launch.

Weights are unpacked in registers, from the layout on disk: nothing but their packed form is ever in memory. A weight's zero
point is subtracted there, where code − z still fits int8 (up to 7 bits; 8-bit weights are corrected by the sums of the tokens'
codes); a token's is corrected by Σ (w − z_w) of each output channel and group, which a small kernel makes first. Integer sums
are exact, groups are added in order in float32, then the low-rank branch, then the bias, as the definition has it; then GELU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2q.runtime.gpu.launch import EXACT, at_once, on_device, padded, pointer
from s2q.runtime.gpu.tuning import tuned


@triton.jit
def _zero_points(packed, output, group, outputs, GROUPS: tl.constexpr, BITS: tl.constexpr):
    """Zero points int32 of some output channels in one group, packed along N: int32 [words, G]."""
    position = output * BITS
    word = position // 32
    shift = (position % 32).to(tl.uint32)
    bits = tl.load(packed + word * GROUPS + group, output < outputs, 0).to(tl.uint32, bitcast=True) >> shift
    if 32 % BITS != 0:
        crosses = (output < outputs) & (shift + BITS > 32)
        above = tl.load(packed + (word + 1) * GROUPS + group, crosses, 0).to(tl.uint32, bitcast=True)
        # Shifted in two steps: by 32 at once is undefined.
        bits |= (above << (31 - shift)) << 1
    return (bits & ((1 << BITS) - 1)).to(tl.int32) - (1 << (BITS - 1))


@triton.jit
def _unpack(row, group, step, here, SIZE: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, PAIRS: tl.constexpr):
    """Piece `step` of a group's codes as stored (code + 2^(b−1)), uint8 [N, WIDTH]; beyond the group they are arbitrary.

    Places are written as multiples of constants, and the last column is not asked for where it cannot be passed: so the
    compiler sees that whole words can be loaded.

    Args:
        row: pointers [N, 1] to the first byte of each row.
        PAIRS: the codes have 4 bits, and each group begins with a byte.
    """
    if PAIRS:
        byte = group * (SIZE // 2) + step * (WIDTH // 2) + tl.arange(0, WIDTH // 2)[None, :]
        mask = here if SIZE % WIDTH == 0 else here & (byte < group * (SIZE // 2) + (SIZE + 1) // 2)
        both = tl.load(row + byte, mask, 0)
        codes = tl.interleave(both & 15, both >> 4)
    else:
        k = group * SIZE + step * WIDTH + tl.arange(0, WIDTH)[None, :]
        mask = here if SIZE % WIDTH == 0 else here & (k < (group + 1) * SIZE)
        if BITS == 8:
            codes = tl.load(row + k, mask, 0)
        else:
            shift = k * BITS % 8
            both = tl.load(row + k * BITS // 8, mask, 0).to(tl.int32)
            if 8 % BITS != 0:
                both |= tl.load(row + k * BITS // 8 + 1, mask & (shift + BITS > 8), 0).to(tl.int32) << 8
            codes = ((both >> shift) & ((1 << BITS) - 1)).to(tl.uint8)
    return codes


@triton.jit
def _signed(codes, BITS: tl.constexpr):
    """Offset binary to two's complement, int8."""
    signed = (codes ^ 0x80).to(tl.int8, bitcast=True) if BITS == 8 else codes.to(tl.int8) - (1 << (BITS - 1))
    return signed.to(tl.int8)


@triton.jit
def _sum_kernel(words, packed_zero, out, outputs, row_bytes, GROUPS: tl.constexpr, SIZE: tl.constexpr,
                WEIGHT_GROUPS: tl.constexpr, BITS: tl.constexpr, PAIRS: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr,
                STEP: tl.constexpr):  # fmt: skip
    """out int32 [N, G]: Σ_{k∈g} (w − z_w)."""
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    here = (output < outputs)[:, None]
    row = words + output.to(tl.int64)[:, None] * row_bytes
    total = tl.zeros((BLOCK,), tl.int32)
    for step in range(0, tl.cdiv(SIZE, STEP)):
        codes = _signed(_unpack(row, group, step, here, SIZE, STEP, BITS, PAIRS), BITS).to(tl.int32)
        inside = (step * STEP + tl.arange(0, STEP) < SIZE)[None, :]
        total += tl.sum(tl.where(inside, codes, 0), 1)
    if ZERO:
        column = group if WEIGHT_GROUPS > 1 else 0
        total -= SIZE * _zero_points(packed_zero, output, column, outputs, WEIGHT_GROUPS, BITS)
    tl.store(out + output * GROUPS + group, total, output < outputs)


@triton.jit
def _tile(index, x, words, scale, zero, weight_scale, packed_zero, x_sums, weight_sums, middle, up, bias, out,
          rows, outputs, row_bytes,
          GROUPS: tl.constexpr, SIZE: tl.constexpr, X_GROUPS: tl.constexpr, WEIGHT_GROUPS: tl.constexpr,
          BITS: tl.constexpr, PAIRS: tl.constexpr, INTEGER: tl.constexpr, X_ZERO: tl.constexpr,
          WEIGHT_ZERO: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
          BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Tile `index` of out [M, N]; x is int8 codes (INTEGER) or float32 values [M, K]."""
    # Programs that run together share rows: eight blocks of rows go through all columns before the next eight.
    tall = tl.cdiv(rows, BLOCK_M)
    wide = tl.cdiv(outputs, BLOCK_N)
    base = index // (8 * wide) * 8
    height = min(tall - base, 8)
    row = (base + index % (8 * wide) % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    output = index % (8 * wide) // height * BLOCK_N + tl.arange(0, BLOCK_N)
    row_here = row < rows
    output_here = output < outputs
    x_row = x + row.to(tl.int64)[:, None] * (GROUPS * SIZE)
    word_row = words + output.to(tl.int64)[:, None] * row_bytes

    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for group in range(GROUPS):
        own = group if X_GROUPS > 1 else 0
        column = group if WEIGHT_GROUPS > 1 else 0
        weight_zero = tl.zeros((BLOCK_N,), tl.int32)
        if WEIGHT_ZERO:
            weight_zero += _zero_points(packed_zero, output, column, outputs, WEIGHT_GROUPS, BITS)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
        for step in range(0, tl.cdiv(SIZE, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
            mask = row_here[:, None] if SIZE % BLOCK_K == 0 else row_here[:, None] & (k < SIZE)
            tokens = tl.load(x_row + group * SIZE + k, mask, 0)
            raw = _unpack(word_row, group, step, output_here[:, None], SIZE, BLOCK_K, BITS, PAIRS)
            weight = _signed(raw, BITS)
            if INTEGER:
                if WEIGHT_ZERO and BITS < 8:
                    weight = (weight - weight_zero.to(tl.int8)[:, None]).to(tl.int8)
                total = tl.dot(tokens, tl.trans(weight), total, out_dtype=tl.int32)
            else:
                values = weight.to(tl.float32) - weight_zero.to(tl.float32)[:, None]
                total = tl.dot(tokens, tl.trans(values), total, input_precision="tf32x3")
        if INTEGER and WEIGHT_ZERO and BITS == 8:
            sums = tl.load(x_sums + row * GROUPS + group, row_here, 0)
            total -= sums[:, None] * weight_zero[None, :]
        if INTEGER and X_ZERO:
            offset = tl.load(zero + row * X_GROUPS + own, row_here, 0.0).to(tl.int32)
            sums = tl.load(weight_sums + output * GROUPS + group, output_here, 0)
            total -= offset[:, None] * sums[None, :]
        part = total.to(tl.float32)
        if INTEGER:
            part *= tl.load(scale + row * X_GROUPS + own, row_here, 0.0)[:, None]
        if WEIGHT_GROUPS > 1:
            part *= tl.load(weight_scale + output * WEIGHT_GROUPS + column, output_here, 0.0)[None, :]
        y += part
    if WEIGHT_GROUPS == 1:
        y *= tl.load(weight_scale + output, output_here, 0.0)[None, :]

    if RANK > 0:
        branch = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, RANK, 16):
            r = start + tl.arange(0, 16)
            mask = row_here[:, None] & (r < RANK)[None, :]
            thin = tl.load(middle + row[:, None] * RANK + r[None, :], mask, 0.0)
            mask = output_here[None, :] & (r < RANK)[:, None]
            raised = tl.load(up + output[None, :] * RANK + r[:, None], mask, 0.0).to(tl.float32)
            branch = tl.dot(thin, raised, branch, input_precision="tf32x3")
        y += branch
    if BIAS:
        y += tl.load(bias + output, output_here, 0.0).to(tl.float32)[None, :]
    if GELU:
        # y (1 + tanh(√(2/π) (y + 0.044715 y³))) / 2; beyond −80 nothing is left of it, and the exponential would overflow.
        y *= tl.sigmoid(tl.maximum(y * (1.5957691216057308 + 0.07135481282052892 * y * y), -80.0))
    at = out + row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(at, y.to(out.dtype.element_ty), row_here[:, None] & output_here[None, :])


@tuned
@triton.jit(do_not_specialize=["rows", "rows_class"])
def _multiply_kernel(x, words, scale, zero, weight_scale, packed_zero, x_sums, weight_sums, middle, up, bias, out,
                     rows, outputs, row_bytes, rows_class,
                     GROUPS: tl.constexpr, SIZE: tl.constexpr, X_GROUPS: tl.constexpr, WEIGHT_GROUPS: tl.constexpr,
                     BITS: tl.constexpr, PAIRS: tl.constexpr, INTEGER: tl.constexpr, X_ZERO: tl.constexpr,
                     WEIGHT_ZERO: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
                     BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                     PERSISTENT: tl.constexpr):  # fmt: skip
    """One tile of the output; or, PERSISTENT, every so many-th: then there are as many programs as the GPU runs at a time."""
    first = tl.program_id(0)
    if PERSISTENT:
        for index in range(first, tl.cdiv(rows, BLOCK_M) * tl.cdiv(outputs, BLOCK_N), tl.num_programs(0)):
            _tile(index, x, words, scale, zero, weight_scale, packed_zero, x_sums, weight_sums, middle, up, bias, out,
                  rows, outputs, row_bytes, GROUPS, SIZE, X_GROUPS, WEIGHT_GROUPS, BITS, PAIRS, INTEGER, X_ZERO, WEIGHT_ZERO,
                  RANK, BIAS, GELU, BLOCK_M, BLOCK_N, BLOCK_K)  # fmt: skip
    else:
        _tile(first, x, words, scale, zero, weight_scale, packed_zero, x_sums, weight_sums, middle, up, bias, out,
              rows, outputs, row_bytes, GROUPS, SIZE, X_GROUPS, WEIGHT_GROUPS, BITS, PAIRS, INTEGER, X_ZERO, WEIGHT_ZERO,
              RANK, BIAS, GELU, BLOCK_M, BLOCK_N, BLOCK_K)  # fmt: skip


def multiply_packed(
    x: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    packed: Tensor,
    weight_scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    branch: tuple[Tensor, Tensor] | None,
    bias: Tensor | None,
    dtype: torch.dtype,
    gelu: bool = False,
) -> Tensor:
    """x [M, K] times packed weights → [M, N] of `dtype`.

    Args:
        x: int8 codes, contiguous, with `scale` and maybe `zero`, float32 [M, G]; or float32 values, without.
        packed, weight_scale, zero_point, bits: as in `s2q.runtime.integer.PackedWeight`.
        branch: float32 [M, r] and [N, r] of any floating dtype.
        gelu: GELU by tanh of the output, before it is narrowed.
    """
    (rows, columns), outputs = x.shape, packed.shape[0]
    x_groups = 1 if scale is None else scale.shape[1]
    groups = max(x_groups, weight_scale.shape[1])
    size = columns // groups
    out = torch.empty(rows, outputs, dtype=dtype, device=x.device)
    packed = packed.contiguous()
    words = packed.view(torch.uint8)
    zeros = pointer(zero_point, packed)
    pairs = bits == 4 and (groups == 1 or size % 2 == 0)
    common = {"GROUPS": groups, "SIZE": size, "WEIGHT_GROUPS": weight_scale.shape[1], "BITS": bits, "PAIRS": pairs}
    x_sums = weight_sums = None
    with on_device(x):
        if zero is not None:
            weight_sums = torch.empty(outputs, groups, dtype=torch.int32, device=x.device)
            _sum_kernel[(-(-outputs // 32), groups)](
                words, zeros, weight_sums, outputs, words.shape[1], **common, ZERO=zero_point is not None, BLOCK=32,
                STEP=min(256, padded(size)),
            )  # fmt: skip
        if zero_point is not None and bits == 8 and scale is not None:
            x_sums = x.view(rows, groups, size).sum(-1, dtype=torch.int32)
        middle, up = (None, None) if branch is None else branch

        def programs(meta: dict[str, int]) -> tuple[int]:
            tiles = -(-rows // meta["BLOCK_M"]) * -(-outputs // meta["BLOCK_N"])
            return (min(tiles, at_once(x)) if meta["PERSISTENT"] else tiles,)

        _multiply_kernel[programs](
            x, words, pointer(scale, weight_scale), pointer(zero, weight_scale), weight_scale.contiguous(), zeros,
            pointer(x_sums, packed), pointer(weight_sums, packed), pointer(middle, weight_scale), pointer(up, x),
            pointer(bias, x), out, rows, outputs, words.shape[1], padded(min(rows, 4096)),
            **common, X_GROUPS=x_groups, INTEGER=scale is not None,
            X_ZERO=zero is not None, WEIGHT_ZERO=zero_point is not None, RANK=0 if up is None else up.shape[1],
            BIAS=bias is not None, GELU=gelu, **EXACT,
        )  # fmt: skip
    return out
