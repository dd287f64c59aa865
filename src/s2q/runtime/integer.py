"""The integer product through `torch._int_mm`, in chunks of rows, from weights that stay packed.

Weights are unpacked at each call into a scratch tensor that lives only for that call; 4-bit weights are unpacked into
two halves (even columns, odd columns), which costs a tenth of interleaving them, and the activations' codes are
written in the same order. The order of the columns does not change the sum, so results equal
`s2q.runtime.reference` bit for bit.
"""

import os
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.packing import unpack
from s2q.numerics.quantizer import dequantize, integer_range, quantize
from s2q.runtime.gpu import backend as triton
from s2q.runtime.native import library as native
from s2q.runtime.reference import (
    ActFormat,
    CodedWeight,
    InputTransform,
    LowRank,
    QuantizedInput,
    input_grid,
    integer_product,
    low_rank_input,
    scaled_product,
    transform_input,
)
from s2q.runtime.scratch import scratch

# Rows of int32 sums made at a time: larger temporaries fall out of the cache and page-fault.
CHUNK_ROWS = 512
# The native path's buffer of sums is used again, so that its size is a matter of the cache and of the product alone,
# which repacks its weight at every call.
MOST_SUMS = 1 << 22
LEAST_ROWS = 256
# cuBLASLt takes int8 products only above this many rows, and widths that are multiples of 8.
CUDA_MIN_ROWS = 17
MIN_COLUMNS = 8


class PackedWeight(NamedTuple):
    """A weight as it is stored."""

    packed: Tensor
    """int32 [N, words]"""
    scale: Tensor
    """float32 [N, G]"""
    zero_point: Tensor | None
    """int32 [⌈N·b/32⌉, G], packed along N; None is symmetric"""
    bits: int

    @property
    def zero(self) -> Tensor | None:
        """Zero points as whole numbers, float32 [N, G]."""
        if self.zero_point is None:
            return None
        return unpack(self.zero_point.mT, self.bits, self.packed.shape[0]).mT.float()


def _kernels(device: torch.device) -> ModuleType | None:
    """The Triton backend, where it is to be asked: on CUDA unless S2Q_BACKEND says otherwise, elsewhere if it is demanded.

    Raises:
        RuntimeError: it is demanded, and cannot run there.
    """
    wanted = os.environ.get("S2Q_BACKEND", "")
    if wanted != "triton" and (wanted or device.type != "cuda"):
        return None
    reason = triton.why_not(device)
    if reason and wanted:
        raise RuntimeError(f"S2Q_BACKEND is triton, but {reason}")
    return None if reason else triton


def in_halves(bits: int, columns: int, groups: int) -> bool:
    """Whether codes stand as (even columns, odd columns) instead of in their natural order."""
    return bits == 4 and columns % 8 == 0 and groups == 1


def why_not_int_mm(device: torch.device, weight_bits: int, rows: int, columns: int) -> str | None:
    """None if `torch._int_mm` computes this product exactly, else the reason why not."""
    if columns < MIN_COLUMNS:
        return f"oneDNN's int8 product is wrong for K = 1; below K = {MIN_COLUMNS} nothing is gained"
    if device.type == "cuda":
        return None if rows % 8 == 0 and columns % 8 == 0 else "CUDA's int8 product needs N and K divisible by 8"
    if device.type != "cpu":
        return f"no int8 product on {device.type}"
    if weight_bits == 8 and not torch.cpu._is_vnni_supported():
        # Without VNNI pairs are summed in 16 bits: 2 · 255 · 127 does not fit, with 7-bit weights it does.
        return "without VNNI the CPU's int8 product saturates for 8-bit weights"
    return None


def quantize_input(
    x: Tensor, transform: InputTransform, acts: ActFormat, halves: bool, keep_values: bool = False
) -> QuantizedInput:
    """`reference.quantize_input` with the codes in the order of `in_halves`: x [M, K] → codes int8 [M, K].

    Args:
        keep_values: a low-rank branch needs x̂.
    """
    kernels = _kernels(x.device)
    if kernels is not None and kernels.why_not_quantize(x, transform, acts) is None:
        return kernels.quantize_input(x, transform, acts, keep_values)
    if transform.range is None and native.why_not(x.device, x.dtype) is None:
        return _quantize_natively(x, transform, acts, halves, keep_values)
    values = transform_input(x, transform)
    scale, zero = input_grid(values, transform, acts)
    kept = values if keep_values else None
    if not halves:
        return QuantizedInput(quantize(values, scale, acts.bits, zero), scale, zero, kept)
    smallest, largest = integer_range(acts.bits)
    # A fresh tensor, so that the caller's is never changed; divided by, not multiplied with a reciprocal, as defined.
    ratio = (values / scale).round_()
    ratio = (ratio if zero is None else ratio.add_(zero)).clamp_(smallest, largest)
    rows, columns = ratio.shape
    codes = torch.empty(rows, 2, columns // 2, dtype=torch.int8, device=x.device)
    codes.copy_(ratio.view(rows, columns // 2, 2).mT)
    return QuantizedInput(codes.view(rows, columns), scale, zero, kept, halves=True)


def _quantize_natively(
    x: Tensor, transform: InputTransform, acts: ActFormat, halves: bool, keep_values: bool
) -> QuantizedInput:
    channel, values = transform.scale, None
    if transform.left is not None or keep_values:
        x, channel = transform_input(x, transform), None
        values = x if keep_values else None
    clip = 1.0 if transform.clip is None else float(transform.clip)
    codes, scale, zero = native.quantize_rows(x, channel, clip, acts.bits, acts.symmetric, acts.groups, halves)
    return QuantizedInput(codes, scale, zero, values, halves)


def in_natural_order(inputs: QuantizedInput) -> QuantizedInput:
    """The same input with its codes taken out of the order of halves."""
    rows, columns = inputs.codes.shape
    return inputs._replace(codes=inputs.codes.view(rows, 2, columns // 2).mT.reshape(rows, columns), halves=False)


def unpack_weight(packed: Tensor, bits: int, columns: int, halves: bool) -> Tensor:
    """int32 [N, words] → int8 [N, K], columns in the order of `in_halves`."""
    if not halves:
        return unpack(packed, bits, columns)
    if native.why_not(packed.device, torch.float32) is None:
        return native.unpack_halves(packed, scratch("weight", (packed.shape[0], columns), torch.int8))
    data = packed.contiguous().view(torch.uint8)
    out = torch.empty(data.shape[0], 2, columns // 2, dtype=torch.uint8, device=packed.device)
    torch.bitwise_and(data, 15, out=out[:, 0])
    torch.bitwise_right_shift(data, 4, out=out[:, 1])
    # Offset binary to two's complement: the subtraction wraps in uint8 to the signed code's bits.
    return out.sub_(8).view(torch.int8).view(-1, columns)


def multiply(
    inputs: QuantizedInput, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None, dtype: torch.dtype
) -> Tensor:
    """Quantized input times packed weight: codes int8 [M, K] → [M, N] of `dtype`."""
    kernels = _kernels(inputs.codes.device)
    if kernels is not None and kernels.why_not_multiply(inputs, weight, dtype) is None:
        return kernels.multiply(inputs, weight, bias, low_rank, dtype)
    rows, columns = inputs.codes.shape
    groups = max(inputs.scale.shape[1], weight.scale.shape[1])
    codes = unpack_weight(weight.packed, weight.bits, columns, inputs.halves)
    coded = CodedWeight(codes, weight.scale, weight.zero)
    declined = why_not_int_mm(codes.device, weight.bits, codes.shape[0], columns // groups)
    product = integer_product if declined else _int_mm
    middle = None
    if low_rank is not None:
        middle = low_rank_input(in_natural_order(inputs) if inputs.halves and low_rank.on_codes else inputs, low_rank)
        up = low_rank.up.float().mT

    out = torch.empty(rows, codes.shape[0], dtype=dtype, device=codes.device)
    if groups == 1 and weight.zero_point is None and not declined and native.why_not(codes.device, dtype) is None:
        _multiply_natively(inputs, coded, bias, None if middle is None else (middle, up), out)
        return out

    def part(own: slice) -> Tensor:
        chosen = QuantizedInput(
            inputs.codes[own], inputs.scale[own], None if inputs.zero is None else inputs.zero[own], None
        )
        y = scaled_product(chosen, coded, product)
        if middle is not None:
            y = y.add_(middle[own] @ up)
        return y if bias is None else y.add_(bias.float())

    for start in range(0, rows, CHUNK_ROWS):
        own = slice(start, min(start + CHUNK_ROWS, rows))
        out[own] = part(own)
    return out


def _multiply_natively(
    inputs: QuantizedInput, weight: CodedWeight, bias: Tensor | None, branch: tuple[Tensor, Tensor] | None, out: Tensor
) -> None:
    """`scaled_product` without groups, the branch (middle [M, r], up [r, N]) and the bias, into `out` [M, N]."""
    rows, columns = out.shape
    bias = None if bias is None else bias.float().contiguous()
    zero = weight_sum = None
    if inputs.zero is not None:
        zero, weight_sum = inputs.zero.to(torch.int32), weight.codes.sum(1, dtype=torch.int32)
    size = max(LEAST_ROWS, MOST_SUMS // columns)
    for start in range(0, rows, size):
        own = slice(start, min(start + size, rows))
        sums = scratch("sums", (own.stop - start, columns), torch.int32)
        torch._int_mm(inputs.codes[own], weight.codes.mT, out=sums)
        part = None if zero is None else zero[own]
        if branch is None:
            native.scale_sums(sums, inputs.scale[own], weight.scale, part, weight_sum, bias, out[own])
            continue
        y = torch.empty(sums.shape)
        native.scale_sums(sums, inputs.scale[own], weight.scale, part, weight_sum, None, y)
        y.add_(branch[0][own] @ branch[1])
        out[own] = y if bias is None else y.add_(bias)


def _int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    short = CUDA_MIN_ROWS - codes.shape[0]
    if codes.is_cuda and short > 0:
        padded = torch.nn.functional.pad(codes, (0, 0, 0, short))
        return torch._int_mm(padded, weight.mT)[: codes.shape[0]]
    return torch._int_mm(codes, weight.mT)


def weight_only(x: Tensor, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None) -> Tensor:
    """Float activations times packed weights: x float32 [M, K] → float32 [M, N].

    The float weight exists for CHUNK_ROWS output channels at a time.
    """
    kernels = _kernels(x.device)
    if kernels is not None and kernels.why_not_weight_only(x, weight) is None:
        return kernels.weight_only(x, weight, bias, low_rank)
    outputs, zero = weight.packed.shape[0], weight.zero
    out = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
    for start in range(0, outputs, CHUNK_ROWS):
        own = slice(start, min(start + CHUNK_ROWS, outputs))
        codes = unpack(weight.packed[own], weight.bits, x.shape[1])
        out[:, own] = x @ dequantize(codes, weight.scale[own], None if zero is None else zero[own]).to(x.dtype).mT
    if low_rank is not None:
        out += (x @ low_rank.down.to(x.dtype).mT) @ low_rank.up.to(x.dtype).mT
    return out if bias is None else out.add_(bias.float())


def float_weight(weight: PackedWeight, columns: int, low_rank: LowRank | None) -> Tensor:
    """The weight that the codes and the branch stand for, behind the transform: float32 [N, K]."""
    values = dequantize(unpack(weight.packed, weight.bits, columns), weight.scale, weight.zero)
    return values if low_rank is None else values + low_rank.up.float() @ low_rank.down.float()
