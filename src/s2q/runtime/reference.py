"""The plain-torch definition of the quantized linear: the oracle of the tests and the path of last resort.

    x̂ = (x · c)(P1 ⊗ P2), or (x · c)(I ⊗ H)     transform, in float32
    a = clamp(round(x̂ / Δ_a) + z_a)              int8, Δ_a and z_a of each token (and group of channels)
    y = Σ_g (Σ_{k∈g} (a_k − z_a)(w_k − z_w)) · Δ_a · Δ_w + low-rank branch + bias

The inner sum is exact, in int32; groups are added in order, in float32. Symmetric grids have z = 0. A weight without groups
has one Δ_w for all of them, which the sum over groups is multiplied by.

Notation: M rows (tokens), K in-features, N out-features, G groups of K/G channels, r rank.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.hadamard import hadamard_blocks
from s2q.numerics.kronecker import kronecker_apply
from s2q.numerics.quantizer import dequantize, grid, quantize, range_grid, row_scale

STORED = ("input_scale", "input_left", "input_right", "input_clip", "input_range")
"""What a checkpoint calls the tensors of an `InputTransform`, in their order."""


class InputTransform(NamedTuple):
    """What is done to an input before it is rounded; None leaves a step out. All tensors float32."""

    scale: Tensor | None = None
    """[K]"""
    left: Tensor | None = None
    """[n1, n1]"""
    right: Tensor | None = None
    """[n2, n2]"""
    clip: Tensor | None = None
    """[1], factor on the range"""
    range: Tensor | None = None
    """[2], lowest and highest value of all tokens; None is each token's own range"""
    hadamard: int = 0
    """length of the blocks of `s2q.numerics.hadamard.hadamard_blocks`, instead of P1 and P2; 0 is none"""

    def tensors(self) -> tuple[Tensor | None, ...]:
        """The fields that are tensors, in the order of `STORED`."""
        return self[: len(STORED)]

    def with_tensors(self, tensors: Iterable[Tensor | None]) -> "InputTransform":
        """The same with other tensors, in the order of `STORED`."""
        return InputTransform(*tensors, self.hadamard)


class ActFormat(NamedTuple):
    """How the codes of an input are made."""

    bits: int
    symmetric: bool = True
    groups: int = 1
    """G"""


class QuantizedInput(NamedTuple):
    """An input as the integer product takes it."""

    codes: Tensor
    """int8 [M, K]"""
    scale: Tensor
    """float32 [M, G], or [M, 1] for tokens without groups"""
    zero: Tensor | None = None
    """float32 whole numbers, of the same shape; None is symmetric"""
    values: Tensor | None = None
    """float32 [M, K], x̂ before rounding, kept for low-rank branches that take it"""
    backend: str | None = None
    """Name of the backend in whose own order the codes stand; None is the natural one"""


class CodedWeight(NamedTuple):
    """A weight as the integer product takes it."""

    codes: Tensor
    """int8 [N, K]"""
    scale: Tensor
    """float32 [N, G], or [N, 1] for a weight without groups"""
    zero: Tensor | None = None
    """float32 whole numbers, of the same shape; None is symmetric"""


class LowRank(NamedTuple):
    """y += (x̂ · downᵀ) · upᵀ"""

    down: Tensor
    """bfloat16 [r, K]"""
    up: Tensor
    """bfloat16 [N, r]"""
    on_codes: bool = False
    """Whether it multiplies the quantized input instead of x̂."""


Product = Callable[[Tensor, Tensor], Tensor]


def transform_input(x: Tensor, transform: InputTransform) -> Tensor:
    """x̂ of the module's docstring: [..., K] of any floating dtype → float32 [..., K]."""
    x = x.float()
    if transform.scale is not None:
        x = x * transform.scale
    if transform.left is not None:
        x = kronecker_apply(x, transform.left, transform.right)
    return hadamard_blocks(x, transform.hadamard) if transform.hadamard else x


def input_grid(x: Tensor, transform: InputTransform, acts: ActFormat) -> tuple[Tensor, Tensor | None]:
    """Δ_a and z_a of transformed tokens x̂ [..., K]: each [..., G], z_a None on symmetric grids."""
    clip = 1.0 if transform.clip is None else transform.clip
    if transform.range is None:
        return grid(x, acts.bits, acts.symmetric, clip, acts.groups)
    shape = (*x.shape[:-1], 1)
    if acts.symmetric:
        return row_scale(transform.range, acts.bits, clip).expand(shape), None
    scale, zero = range_grid(transform.range[:1], transform.range[1:], acts.bits, clip)
    return scale.expand(shape), zero.expand(shape)


def quantize_input(x: Tensor, transform: InputTransform, acts: ActFormat) -> QuantizedInput:
    """Transform and quantize the tokens `x` [M, K]."""
    values = transform_input(x, transform)
    scale, zero = input_grid(values, transform, acts)
    return QuantizedInput(quantize(values, scale, acts.bits, zero), scale, zero, values)


def integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """Σ_k a_k w_k, exact: int8 [M, K] and int8 [N, K] → int32 [M, N].

    float64 holds every sum of products of int8 codes exactly up to K = 2^39, and its product is fast enough to test with.
    """
    return (codes.double() @ weight.double().mT).to(torch.int32)


def scaled_product(inputs: QuantizedInput, weight: CodedWeight, product: Product) -> Tensor:
    """Σ_g of the module's docstring: float32 [M, N].

    Args:
        product: the exact integer product of codes, int8 [M, k] and int8 [N, k] → int32 [M, N].
    """
    groups = max(inputs.scale.shape[1], weight.scale.shape[1])
    y = None
    for group, (a, w) in enumerate(zip(inputs.codes.chunk(groups, 1), weight.codes.chunk(groups, 1), strict=True)):
        total = product(a, w)
        own, column = (
            slice(0, 1) if scale.shape[1] == 1 else slice(group, group + 1) for scale in (inputs.scale, weight.scale)
        )
        zero_a = None if inputs.zero is None else inputs.zero[:, own].to(torch.int32)
        if zero_a is not None:
            total = total - zero_a * w.sum(1, dtype=torch.int32)
        if weight.zero is not None:
            zero_w = weight.zero[:, column].to(torch.int32).mT
            total = total - a.sum(1, keepdim=True, dtype=torch.int32) * zero_w
            if zero_a is not None:
                total = total + a.shape[1] * zero_a * zero_w
        part = total.float().mul_(inputs.scale[:, own])
        if weight.scale.shape[1] > 1:
            part = part.mul_(weight.scale[:, column].mT)
        y = part if y is None else y.add_(part)
    return y if weight.scale.shape[1] > 1 else y.mul_(weight.scale.mT)


def gelu_tanh(y: Tensor) -> Tensor:
    """GELU by tanh of a float32 output; one pass takes it with the product's sums, instead of one over the output.

    Backends compute it by formulas of their own, within a few units in the last place of float32.
    """
    return torch.nn.functional.gelu(y, approximate="tanh")


def low_rank_input(inputs: QuantizedInput, low_rank: LowRank) -> Tensor:
    """What the branch passes through its narrow middle: float32 [M, r]."""
    x = dequantize(inputs.codes, inputs.scale, inputs.zero) if low_rank.on_codes else inputs.values
    return x @ low_rank.down.float().mT


def quantized_linear(
    x: Tensor,
    transform: InputTransform,
    acts: ActFormat,
    weight: CodedWeight,
    bias: Tensor | None,
    low_rank: LowRank | None = None,
) -> Tensor:
    """The whole definition: x [M, K] → [M, N] in the dtype of `x`."""
    inputs = quantize_input(x, transform, acts)
    y = scaled_product(inputs, weight, integer_product)
    if low_rank is not None:
        y = y.add_(low_rank_input(inputs, low_rank) @ low_rank.up.float().mT)
    return (y if bias is None else y.add_(bias.float())).to(x.dtype)
