"""The backend through `torch._int_mm`, on every device: in chunks of rows, from weights that stay packed.

Weights are unpacked at each call into a scratch tensor that lives only for that call. Results equal `s2q.runtime.reference`
bit for bit.
"""

import torch
from torch import Tensor

from s2q.numerics.packing import unpack, unpack_nibbles
from s2q.numerics.parts import height
from s2q.numerics.quantizer import dequantize
from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.native import library as native
from s2q.runtime.native.backend import quantize_rows
from s2q.runtime.reference import (
    CodedWeight,
    InputTransform,
    LowRank,
    QuantizedInput,
    gelu_tanh,
    integer_product,
    low_rank_input,
    quantize_input,
    scaled_product,
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


def unpack_weight(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int32 [N, words] → int8 [N, K], on a CPU maybe a scratch tensor."""
    if bits != 4 or columns % 8 or packed.device.type != "cpu":
        return unpack(packed, bits, columns)
    out = scratch("weight", (packed.shape[0], columns), torch.int8)
    return (unpack_nibbles if native.why_not(packed.device, torch.float32) else native.unpack_nibbles)(packed, out)


class TorchBackend:
    """The path of last resort, which takes everything; where the native code is there, it does what surrounds the product."""

    name = "torch"

    def missing(self) -> str | None:
        """Never."""
        return None

    def about(self) -> str:
        """The library's product."""
        return "torch._int_mm"

    def why_not_quantize(self, problem: Problem) -> str | None:
        """Never."""
        return None

    def why_not_multiply(self, problem: Problem) -> str | None:
        """Never: what `why_not_int_mm` declines is left to the definition."""
        return None

    def quantize_input(self, x: Tensor, transform: InputTransform, problem: Problem) -> QuantizedInput:
        """`reference.quantize_input`, some rows at a time."""
        keep = problem.low_rank > 0 and not problem.low_rank_on_codes
        if native.why_not(x.device, x.dtype) is None:
            return quantize_rows(x, transform, problem, keep)
        parts = []
        for part in x.split(height(x)):
            made = quantize_input(part, transform, problem.acts)
            parts.append(made if keep else made._replace(values=None))
        return QuantizedInput(*(None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)))

    def natural(self, inputs: QuantizedInput, problem: Problem) -> QuantizedInput:
        """As they are: it has no order of its own."""
        return inputs

    def multiply(
        self,
        inputs: QuantizedInput,
        weight: PackedWeight,
        bias: Tensor | None,
        low_rank: LowRank | None,
        problem: Problem,
    ) -> Tensor:
        """One product for each group, its sums scaled, branch and bias added, in chunks of rows."""
        rows, columns = inputs.codes.shape
        codes = unpack_weight(weight.packed, weight.bits, columns)
        zero = weight.zero
        # The difference fits seven bits, which no int8 product saturates with, and nothing is left to correct.
        if zero is not None and weight.bits < 7:
            groups = zero.shape[1]
            codes.view(-1, groups, columns // groups).sub_(zero.to(torch.int8)[:, :, None])
            zero = None
        coded = CodedWeight(codes, weight.scale, zero)
        declined = why_not_int_mm(codes.device, weight.bits, codes.shape[0], columns // problem.groups)
        product = integer_product if declined else _int_mm
        middle = None
        if low_rank is not None:
            middle = low_rank_input(inputs, low_rank)
            up = low_rank.up.float().mT

        out = torch.empty(rows, codes.shape[0], dtype=problem.dtype, device=codes.device)
        if codes.device.type == "cpu" and problem.groups == 1 and zero is None and not declined:
            _multiply_plain(inputs, coded, bias, None if middle is None else (middle, up), problem.gelu_tanh, out)
            return out

        def part(own: slice) -> Tensor:
            chosen = QuantizedInput(
                inputs.codes[own], inputs.scale[own], None if inputs.zero is None else inputs.zero[own], None
            )
            y = scaled_product(chosen, coded, product)
            branch = None if middle is None else middle[own] @ up
            return _finished(y, branch, None if bias is None else bias.float(), problem.gelu_tanh)

        for start in range(0, rows, CHUNK_ROWS):
            own = slice(start, min(start + CHUNK_ROWS, rows))
            out[own] = part(own)
        return out


def _finished(y: Tensor, branch: Tensor | None, bias: Tensor | None, gelu: bool) -> Tensor:
    """Scaled sums float32 [M, N], which are written over, with the branch's output, the bias and GELU."""
    if branch is not None:
        y.add_(branch)
    if bias is not None:
        y.add_(bias)
    return gelu_tanh(y) if gelu else y


def _scale_sums(
    sums: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    zero: Tensor | None,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """`native.scale_sums` in plain torch."""
    for start in range(0, len(sums), height(sums)):
        own = slice(start, start + height(sums))
        total = sums[own] if zero is None else sums[own] - zero[own] * weight_sum
        y = total.float().mul_(scale[own]).mul_(weight_scale.mT)
        out[own] = y if bias is None else y.add_(bias)


def _multiply_plain(
    inputs: QuantizedInput,
    weight: CodedWeight,
    bias: Tensor | None,
    branch: tuple[Tensor, Tensor] | None,
    gelu: bool,
    out: Tensor,
) -> None:
    """`scaled_product` without groups, the branch (middle [M, r], up [r, N]), the bias and GELU, into `out` [M, N]."""
    rows, columns = out.shape
    bias = None if bias is None else bias.float().contiguous()
    scale_sums = _scale_sums if native.why_not(out.device, out.dtype) else native.scale_sums
    zero = weight_sum = None
    if inputs.zero is not None:
        zero, weight_sum = inputs.zero.to(torch.int32), weight.codes.sum(1, dtype=torch.int32)
    size = max(LEAST_ROWS, MOST_SUMS // columns)
    for start in range(0, rows, size):
        own = slice(start, min(start + size, rows))
        sums = scratch("sums", (own.stop - start, columns), torch.int32)
        torch._int_mm(inputs.codes[own], weight.codes.mT, out=sums)
        part = None if zero is None else zero[own]
        if branch is None and not gelu:
            scale_sums(sums, inputs.scale[own], weight.scale, part, weight_sum, bias, out[own])
            continue
        y = torch.empty(sums.shape)
        scale_sums(sums, inputs.scale[own], weight.scale, part, weight_sum, None, y)
        out[own] = _finished(y, None if branch is None else branch[0][own] @ branch[1], bias, gelu)


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
