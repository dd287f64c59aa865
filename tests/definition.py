"""What a quantized linear's output must be, by `s2q.runtime.reference`."""

import torch
from torch import Tensor

from s2q.numerics.packing import unpack
from s2q.runtime import reference
from s2q.runtime.dispatch import choose
from s2q.runtime.linear import QuantLinear


def transformed(linear: QuantLinear, x: Tensor) -> Tensor:
    """x̂ of `x` [M, K] as the backend makes it, which is what the definition says but for the order of float sums."""
    problem = linear.problem(x)._replace(low_rank=1, low_rank_on_codes=False)
    values = choose(problem).quantize.quantize_input(x, linear.input_transform(), problem).values
    exact = reference.transform_input(x, linear.input_transform())
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-5)
    return values


def defined(linear: QuantLinear, x: Tensor) -> Tensor:
    """What `s2q.runtime.reference` says the output is, from the backend's x̂ where there is a Kronecker transform."""
    scheme, bits = linear.scheme, linear.scheme.weight_bits
    zero = None
    if not scheme.symmetric_weights:
        zero = unpack(linear.weight_zero_point.mT, bits, linear.out_features).mT.float()
    values, transform = x.reshape(-1, linear.in_features), linear.input_transform()
    if transform.left is not None:
        values, transform = transformed(linear, values), transform._replace(scale=None, left=None, right=None)
    y = reference.quantized_linear(
        values,
        transform,
        reference.ActFormat(scheme.act_bits, scheme.symmetric_acts, linear.act_groups),
        reference.CodedWeight(unpack(linear.weight_packed, bits, linear.in_features), linear.weight_scale, zero),
        linear.bias,
        linear.low_rank(),
    )
    return y.to(x.dtype).view(*x.shape[:-1], linear.out_features)
