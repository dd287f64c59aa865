"""The quantized linear as one registered operator, for `torch.compile` and for training adapters through it."""

import torch
from torch import Tensor

from s2q.numerics.hadamard import hadamard_blocks
from s2q.numerics.kronecker import kronecker_apply
from s2q.runtime import reference
from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.dispatch import choose, multiply, quantize_input, weight_only
from s2q.runtime.integer import float_weight
from s2q.runtime.reference import ActFormat, InputTransform, LowRank, transform_input

WEIGHT_ONLY = 0
"""Value of `act_bits` for inputs that stay in floating point (an operator's schema has no optional int that traces)."""


@torch.library.custom_op("s2q::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_left: Tensor | None,
    input_right: Tensor | None,
    input_clip: Tensor | None,
    input_range: Tensor | None,
    low_rank_down: Tensor | None,
    low_rank_up: Tensor | None,
    weight_bits: int,
    act_bits: int,
    symmetric_acts: bool,
    act_groups: int,
    low_rank_on_codes: bool,
    hadamard: int,
    gelu_tanh: bool,
) -> Tensor:
    """x [M, K], packed int32 [N, words], weight_scale float32 [N, G] → [M, N] in the dtype of `x`."""
    transform = InputTransform(input_scale, input_left, input_right, input_clip, input_range, hadamard)
    weight = PackedWeight(packed, weight_scale, weight_zero_point, weight_bits)
    low_rank = None if low_rank_down is None else LowRank(low_rank_down, low_rank_up, low_rank_on_codes)
    if act_bits == WEIGHT_ONLY:
        y = weight_only(transform_input(x, transform), weight, bias, low_rank)
        return (reference.gelu_tanh(y) if gelu_tanh else y).to(x.dtype)
    asked = Problem(
        x.device,
        x.dtype,
        *x.shape,
        packed.shape[0],
        ActFormat(act_bits, symmetric_acts, act_groups),
        weight_bits,
        weight_zero_point is None,
        weight_scale.shape[1],
        None if input_left is None else (input_left.shape[0], input_right.shape[0]),
        input_range is not None,
        0 if low_rank is None else low_rank_down.shape[0],
        low_rank_on_codes,
        hadamard,
        gelu_tanh,
    )
    choice = choose(asked)
    return multiply(choice, quantize_input(choice, x, transform), weight, bias, low_rank)


@quantized_linear.register_fake
def _(x, packed, *args):
    return x.new_empty(x.shape[0], packed.shape[0])


def _save(ctx, inputs, output):
    (x, packed, weight_scale, zero_point, _, input_scale, left, right, _, _, down, up, ctx.weight_bits, *_) = inputs
    *_, ctx.hadamard, ctx.gelu_tanh = inputs
    ctx.columns, ctx.dtype = x.shape[1], x.dtype
    ctx.save_for_backward(packed, weight_scale, zero_point, input_scale, left, right, down, up)


def _backward(ctx, gradient):
    """Gradient of the input alone, rounding passed straight through; everything quantized is frozen."""
    if ctx.gelu_tanh:
        raise NotImplementedError(
            "a quantized linear with GELU in it has no gradient: apply GELU to its output instead"
        )
    packed, weight_scale, zero_point, input_scale, left, right, down, up = ctx.saved_tensors
    low_rank = None if down is None else LowRank(down, up)
    weight = float_weight(PackedWeight(packed, weight_scale, zero_point, ctx.weight_bits), ctx.columns, low_rank)
    gradient = gradient.float() @ weight
    if left is not None:
        gradient = kronecker_apply(gradient, left.mT, right.mT)
    if ctx.hadamard:
        gradient = hadamard_blocks(gradient, ctx.hadamard)
    if input_scale is not None:
        gradient = gradient * input_scale
    return (gradient.to(ctx.dtype), *[None] * 18)


quantized_linear.register_autograd(_backward, setup_context=_save)
