"""The quantized linear as one registered operator, for `torch.compile` and for training adapters through it."""

import torch
from torch import Tensor

from s2q.numerics.kronecker import kronecker_apply
from s2q.numerics.packing import unpack
from s2q.runtime.integer import in_halves, multiply, quantize_input, weight_only
from s2q.runtime.reference import InputTransform, transform_input

WEIGHT_ONLY = 0
"""Value of `act_bits` for inputs that stay in floating point (an operator's schema has no optional int that traces)."""


@torch.library.custom_op("s2q::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_left: Tensor | None,
    input_right: Tensor | None,
    input_clip: Tensor | None,
    weight_bits: int,
    act_bits: int,
) -> Tensor:
    """x [M, K], packed int32 [N, words], weight_scale float32 [N, 1] → [M, N] in the dtype of `x`."""
    transform = InputTransform(input_scale, input_left, input_right, input_clip)
    if act_bits == WEIGHT_ONLY:
        return weight_only(transform_input(x, transform), packed, weight_bits, weight_scale, bias).to(x.dtype)
    inputs = quantize_input(x, transform, act_bits, in_halves(weight_bits, x.shape[1]))
    return multiply(inputs, packed, weight_bits, weight_scale, bias, x.dtype)


@quantized_linear.register_fake
def _(x, packed, weight_scale, bias, input_scale, input_left, input_right, input_clip, weight_bits, act_bits):
    return x.new_empty(x.shape[0], packed.shape[0])


def _save(ctx, inputs, output):
    x, packed, weight_scale, _, input_scale, left, right, _, ctx.weight_bits, _ = inputs
    ctx.columns, ctx.dtype = x.shape[1], x.dtype
    ctx.save_for_backward(packed, weight_scale, input_scale, left, right)


def _backward(ctx, gradient):
    """Gradient of the input alone, rounding passed straight through; everything quantized is frozen."""
    packed, weight_scale, input_scale, left, right = ctx.saved_tensors
    weight = unpack(packed, ctx.weight_bits, ctx.columns).float() * weight_scale
    gradient = gradient.float() @ weight
    if left is not None:
        gradient = kronecker_apply(gradient, left.mT, right.mT)
    if input_scale is not None:
        gradient = gradient * input_scale
    return (gradient.to(ctx.dtype), *[None] * 9)


quantized_linear.register_autograd(_backward, setup_context=_save)
