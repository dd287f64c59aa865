"""The linear while it is being learned: everything in floating point, rounding simulated."""

import torch
from torch import Tensor, nn

from s2q.numerics.quantizer import fake_quantize, row_scale
from s2q.quantization.transforms import CLIP_LOGIT, SharedTransform
from s2q.recipe import LinearScheme


class SimulatedLinear(nn.Module):
    """y = Q(x T) Q(T⁻¹ wᵀ) + bias with straight-through gradients; the float weight is frozen."""

    def __init__(self, linear: nn.Linear, scheme: LinearScheme, inputs: SharedTransform):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().float())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.weight_bits = scheme.weight_bits
        # In a list, so that a transform that several linears share is not a child of each.
        self._inputs = [inputs]
        self.clip_logit = None
        if scheme.learned_clip:
            self.clip_logit = nn.Parameter(torch.full((linear.out_features, 1), CLIP_LOGIT))

    @property
    def inputs(self) -> SharedTransform:
        """The transform of this linear's input."""
        return self._inputs[0]

    def weight_scale(self, transformed: Tensor) -> Tensor:
        """Step size of each output channel of the transformed weight, [N, 1]."""
        clip = 1.0 if self.clip_logit is None else self.clip_logit.sigmoid()
        return row_scale(transformed, self.weight_bits, clip)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N] in the dtype of `x`."""
        weight = self.inputs.on_weight(self.weight)
        weight = fake_quantize(weight, self.weight_scale(weight), self.weight_bits)
        return nn.functional.linear(self.inputs(x), weight, self.bias).to(x.dtype)
