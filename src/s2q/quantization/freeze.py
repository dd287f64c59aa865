"""Turn what was learned into integers: fold the transform into the weight, round, pack."""

import torch
from torch import Tensor

from s2q.numerics.gptq import HessianFactor, gptq_round, gptq_search
from s2q.numerics.packing import pack
from s2q.numerics.quantizer import quantize
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.passes import Mixing, prepare
from s2q.runtime.reference import STORED, InputTransform


@torch.no_grad()
def frozen_transform(linear: SimulatedLinear) -> InputTransform:
    """The input's transform as it will be stored: float32, detached."""
    made = linear.inputs.input_transform()
    return made.with_tensors(None if t is None else t.detach().float().contiguous() for t in made.tensors())


@torch.no_grad()
def fold(weight: Tensor, transform: InputTransform) -> Tensor:
    """The weight that makes up for `transform` exactly as stored: float64 [N, K], inverses taken in float64."""
    scale = None if transform.scale is None else transform.scale.double()
    left = right = None
    if transform.left is not None:
        left, right = (torch.linalg.inv(factor.double()).mT for factor in (transform.left, transform.right))
    return prepare(weight.double(), Mixing(scale, True, left, right, transform.hadamard))


@torch.no_grad()
def freeze(linear: SimulatedLinear, factor: HessianFactor | None, step_search: bool = False) -> dict[str, Tensor]:
    """The tensors of `s2q.checkpoint` for one linear (without bias).

    Args:
        factor: `hessian_factor` of the transformed, quantized inputs; needed by GPTQ.
        step_search: GPTQ looks for better step sizes.
    """
    scheme, transform = linear.scheme, frozen_transform(linear)
    down, up = (None if t is None else t.bfloat16() for t in (linear.low_rank_down, linear.low_rank_up))
    weight = linear.remainder(fold(linear.weight, transform))
    bits = scheme.weight_bits
    scale, zero = linear.round_grid if scheme.rounding == "adaround" else linear.weight_grid(weight)
    scale = scale.float()
    if scheme.rounding == "gptq" and step_search:
        codes, scale = gptq_search(weight, scale, factor, bits, zero)
    elif scheme.rounding == "gptq":
        codes = gptq_round(weight, scale, factor, bits, zero)
    elif scheme.rounding == "adaround":
        codes = linear.chosen_codes((linear.round_logit > 0).float()).to(torch.int8)
    else:
        codes = quantize(weight, scale.double(), bits, None if zero is None else zero.double())
    packed_zero = None if zero is None else pack(zero.to(torch.int8).mT.contiguous(), bits).mT
    named = {
        "weight_packed": pack(codes, bits),
        "weight_scale": scale,
        "weight_zero_point": packed_zero,
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
        **dict(zip(STORED, transform.tensors(), strict=True)),
        "low_rank_down": down,
        "low_rank_up": up,
    }
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
        if tensor is not None
    }
