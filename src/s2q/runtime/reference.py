"""The plain-torch definition of the quantized linear: the oracle of the tests and the path of last resort.

    x̂ = (x · c)(P1 ⊗ P2)                   transform, in float32
    Δ = clip · max|x̂| / (2^(b−1) − 1)      one step size a token
    a = clamp(round(x̂ / Δ))                 int8
    y = (Σ_k a_k w_k) · Δ · Δ_w + bias      the sum exact, in int32

Notation: M rows (tokens), K in-features, N out-features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from s2q.numerics.kronecker import kronecker_apply
from s2q.numerics.quantizer import quantize, row_scale


class InputTransform(NamedTuple):
    """What is done to an input before it is rounded; None leaves a step out. All float32."""

    scale: Tensor | None = None
    """[K]"""
    left: Tensor | None = None
    """[n1, n1]"""
    right: Tensor | None = None
    """[n2, n2]"""
    clip: Tensor | None = None
    """[1]"""


class QuantizedInput(NamedTuple):
    """An input as the integer product takes it."""

    codes: Tensor
    """int8 [M, K]"""
    scale: Tensor
    """float32 [M, 1]"""


def transform_input(x: Tensor, transform: InputTransform) -> Tensor:
    """x̂ of the module's docstring: [..., K] of any floating dtype → float32 [..., K]."""
    x = x.float()
    if transform.scale is not None:
        x = x * transform.scale
    if transform.left is not None:
        x = kronecker_apply(x, transform.left, transform.right)
    return x


def quantize_input(x: Tensor, transform: InputTransform, bits: int) -> QuantizedInput:
    """Transform and quantize the tokens `x` [M, K]."""
    x = transform_input(x, transform)
    scale = row_scale(x, bits, 1.0 if transform.clip is None else transform.clip)
    return QuantizedInput(quantize(x, scale, bits), scale)


def integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """Σ_k a_k w_k, exact: int8 [M, K] and int8 [N, K] → int32 [M, N].

    float64 holds every sum of products of int8 codes exactly up to K = 2^39, and its product is fast enough to test with.
    """
    return (codes.double() @ weight.double().mT).to(torch.int32)


def dequantize_output(total: Tensor, scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """int32 [M, N] → float32 [M, N]: times the token's step, times the channel's, plus bias."""
    y = total.float().mul_(scale).mul_(weight_scale.mT)
    return y if bias is None else y.add_(bias.float())


def quantized_linear(
    x: Tensor, transform: InputTransform, act_bits: int, codes: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """The whole definition: x [M, K], codes int8 [N, K], weight_scale [N, 1] → [M, N] in the dtype of `x`."""
    inputs = quantize_input(x, transform, act_bits)
    total = integer_product(inputs.codes, codes)
    return dequantize_output(total, inputs.scale, weight_scale, bias).to(x.dtype)
