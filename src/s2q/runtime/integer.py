"""The integer product through `torch._int_mm`, in chunks of rows, from weights that stay packed.

Weights are unpacked at each call into a scratch tensor that lives only for that call; 4-bit weights are unpacked into
two halves (even columns, odd columns), which costs a tenth of interleaving them, and the activations' codes are
written in the same order. The order of the columns does not change the sum, so results equal
`s2q.runtime.reference` bit for bit.
"""

import torch
from torch import Tensor

from s2q.numerics.packing import unpack
from s2q.numerics.quantizer import integer_range, row_scale
from s2q.runtime.reference import InputTransform, QuantizedInput, dequantize_output, integer_product, transform_input

# Rows of int32 sums made at a time: larger temporaries fall out of the cache and page-fault.
CHUNK_ROWS = 512
# cuBLASLt takes int8 products only above this many rows, and widths that are multiples of 8.
CUDA_MIN_ROWS = 17
MIN_COLUMNS = 8


def in_halves(bits: int, columns: int) -> bool:
    """Whether codes stand as (even columns, odd columns) instead of in their natural order."""
    return bits == 4 and columns % 8 == 0


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


def quantize_input(x: Tensor, transform: InputTransform, bits: int, halves: bool) -> QuantizedInput:
    """`reference.quantize_input` with the codes in the order of `in_halves`: x [M, K] → codes int8 [M, K]."""
    x = transform_input(x, transform)
    scale = row_scale(x, bits, 1.0 if transform.clip is None else transform.clip)
    smallest, largest = integer_range(bits)
    # A fresh tensor, so that the caller's is never changed; divided by, not multiplied with a reciprocal, as defined.
    ratio = (x / scale).round_().clamp_(smallest, largest)
    if not halves:
        return QuantizedInput(ratio.to(torch.int8), scale)
    rows, columns = ratio.shape
    codes = torch.empty(rows, 2, columns // 2, dtype=torch.int8, device=x.device)
    codes.copy_(ratio.view(rows, columns // 2, 2).mT)
    return QuantizedInput(codes.view(rows, columns), scale)


def unpack_weight(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int32 [N, words] → int8 [N, K], columns in the order of `in_halves`."""
    if not in_halves(bits, columns):
        return unpack(packed, bits, columns)
    data = packed.contiguous().view(torch.uint8)
    out = torch.empty(data.shape[0], 2, columns // 2, dtype=torch.uint8, device=packed.device)
    torch.bitwise_and(data, 15, out=out[:, 0])
    torch.bitwise_right_shift(data, 4, out=out[:, 1])
    # Offset binary to two's complement: the subtraction wraps in uint8 to the signed code's bits.
    return out.sub_(8).view(torch.int8).view(-1, columns)


def multiply(
    inputs: QuantizedInput,
    packed: Tensor,
    weight_bits: int,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Quantized input times packed weight: codes int8 [M, K], packed int32 [N, words] → [M, N] of `dtype`."""
    rows, columns = inputs.codes.shape
    weight = unpack_weight(packed, weight_bits, columns)
    if why_not_int_mm(weight.device, weight_bits, weight.shape[0], columns):
        total = integer_product(inputs.codes, weight)
        return dequantize_output(total, inputs.scale, weight_scale, bias).to(dtype)
    if rows <= CHUNK_ROWS:
        return dequantize_output(_int_mm(inputs.codes, weight), inputs.scale, weight_scale, bias).to(dtype)
    out = torch.empty(rows, weight.shape[0], dtype=dtype, device=weight.device)
    for start in range(0, rows, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, rows)
        total = _int_mm(inputs.codes[start:stop], weight)
        out[start:stop] = dequantize_output(total, inputs.scale[start:stop], weight_scale, bias)
    return out


def _int_mm(codes: Tensor, weight: Tensor) -> Tensor:
    short = CUDA_MIN_ROWS - codes.shape[0]
    if codes.is_cuda and short > 0:
        padded = torch.nn.functional.pad(codes, (0, 0, 0, short))
        return torch._int_mm(padded, weight.mT)[: codes.shape[0]]
    return torch._int_mm(codes, weight.mT)


def weight_only(x: Tensor, packed: Tensor, weight_bits: int, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Float activations times packed weights: x float32 [M, K] → float32 [M, N].

    The float weight exists for CHUNK_ROWS output channels at a time.
    """
    outputs = packed.shape[0]
    out = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
    for start in range(0, outputs, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, outputs)
        weight = unpack(packed[start:stop], weight_bits, x.shape[1]).to(x.dtype) * weight_scale[start:stop]
        out[:, start:stop] = x @ weight.mT
    return out if bias is None else out.add_(bias.float())
