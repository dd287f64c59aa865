"""What is learned about an input that one or more linears share: transform and clipping (FlatQuant, arXiv 2410.09426)."""

import torch
from torch import Tensor, nn

from s2q.numerics.kronecker import cayley, kronecker_apply, kronecker_factors, random_orthogonal
from s2q.numerics.quantizer import fake_quantize, row_scale
from s2q.recipe import LinearScheme
from s2q.runtime.reference import InputTransform, transform_input

CLIP_LOGIT = 4.0
"""Start of every clipping logit, as in FlatQuant: sigmoid(4) = 0.982 of the range."""
SMALLEST_STATISTIC = 1e-5


class _Factor(nn.Module):
    """One factor of the Kronecker transform: U · diag(σ) · Vᵀ with U and V orthogonal; starts as a random rotation."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.register_buffer("base_u", random_orthogonal(size, generator))
        self.register_buffer("base_v", random_orthogonal(size, generator))
        self.u = nn.Parameter(torch.zeros(size, size))
        self.v = nn.Parameter(torch.zeros(size, size))
        self.log_sigma = nn.Parameter(torch.zeros(size))

    def forward(self) -> tuple[Tensor, Tensor]:
        """P and P⁻ᵀ, both [size, size]; the inverse costs nothing in this form."""
        u, v = cayley(self.u, self.base_u), cayley(self.v, self.base_v)
        sigma = self.log_sigma.exp()
        return (u * sigma) @ v.mT, (u / sigma) @ v.mT


class SharedTransform(nn.Module):
    """Transform and quantization of one input, learnable, used by every linear that receives it.

    Args:
        columns: K.
        scheme: of the linears that share the input.
        input_max: largest magnitude of each channel over the calibration set, [K].
        weight_max: the same of the weights' columns over all the linears, [K].
        generator: for the start of the rotations.
    """

    def __init__(
        self, columns: int, scheme: LinearScheme, input_max: Tensor, weight_max: Tensor, generator: torch.Generator
    ):
        super().__init__()
        self.act_bits = scheme.act_bits
        spec = scheme.transform
        self.log_scale = self.left = self.right = self.clip_logit = None
        if spec is not None and spec.channel_scale:
            weight_max, input_max = weight_max.clamp(min=SMALLEST_STATISTIC), input_max.clamp(min=SMALLEST_STATISTIC)
            scale = weight_max ** (1 - spec.alpha) / input_max**spec.alpha
            self.log_scale = nn.Parameter((scale / scale.log().mean().exp()).log())
        if spec is not None and spec.kronecker:
            n1, n2 = kronecker_factors(columns)
            self.left, self.right = _Factor(n1, generator), _Factor(n2, generator)
        if scheme.learned_clip and scheme.act_bits is not None:
            self.clip_logit = nn.Parameter(torch.full((1,), CLIP_LOGIT))
        self._factors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        self._source: Tensor | None = None
        self._value: Tensor | None = None

    def transform_parameters(self) -> list[nn.Parameter]:
        """What the learning rate of scales and matrices applies to."""
        return [p for name, p in self.named_parameters() if name != "clip_logit"]

    def clip_parameters(self) -> list[nn.Parameter]:
        """What the learning rate of clipping applies to."""
        return [] if self.clip_logit is None else [self.clip_logit]

    def input_transform(self) -> InputTransform:
        """The transform as inference applies it, differentiable."""
        left = right = None
        if self.left is not None:
            (left, _), (right, _) = self._matrices()
        return InputTransform(
            None if self.log_scale is None else self.log_scale.exp(),
            left,
            right,
            None if self.clip_logit is None else self.clip_logit.sigmoid(),
        )

    def on_weight(self, weight: Tensor) -> Tensor:
        """The inverse transform of a weight's columns, [N, K] → [N, K], so that x̂ ŵᵀ = x wᵀ."""
        if self.log_scale is not None:
            weight = weight / self.log_scale.exp()
        if self.left is not None:
            (_, left), (_, right) = self._matrices()
            weight = kronecker_apply(weight, left, right)
        return weight

    def _matrices(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(P1, P1⁻ᵀ), (P2, P2⁻ᵀ), made once between two calls of `forget`: several linears need them."""
        if self._factors is None:
            self._factors = self.left(), self.right()
        return self._factors

    def forward(self, x: Tensor) -> Tensor:
        """x̂ transformed and fake-quantized, [..., K] float32; done once for all linears that share `x`."""
        if self._source is not x or self._value is None:
            transform = self.input_transform()
            value = transform_input(x, transform)
            if self.act_bits is not None:
                clip = 1.0 if transform.clip is None else transform.clip
                value = fake_quantize(value, row_scale(value, self.act_bits, clip), self.act_bits)
            self._source, self._value = x, value
        return self._value

    def forget(self) -> None:
        """Drop what is remembered of the input and the matrices: parameters have changed, or the pass is over."""
        self._factors = self._source = self._value = None
