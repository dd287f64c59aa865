"""The linear while it is being learned: everything in floating point, rounding simulated."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from s2q.numerics.quantizer import dequantize, grid, group_count, integer_range, per_value
from s2q.numerics.rounding import initial_logit, soft_round_up
from s2q.numerics.straight_through import fake_quantize
from s2q.quantization.passes import Grid, Mixing, prepare
from s2q.quantization.transforms import CLIP_LOGIT, SharedTransform, logit_of
from s2q.recipe import LinearScheme

# Shares of each output channel's range that weight_clip = "mse" chooses from.
CLIPS_TRIED = [1 - 0.01 * step for step in range(60)]


class SimulatedLinear(nn.Module):
    """y = Q(x T) Q(T⁻¹ wᵀ − branch) + branch + bias with straight-through gradients; the float weight is frozen."""

    def __init__(self, linear: nn.Linear, scheme: LinearScheme, inputs: SharedTransform):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().float())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())
        self.scheme, self.weight_bits = scheme, scheme.weight_bits
        self.groups = group_count(linear.in_features, scheme.group_size)
        # In a list, so that a transform that several linears share is not a child of each.
        self._inputs = [inputs]
        self._settled: Tensor | None = None
        self.clip_logit = self.round_logit = self.low_rank_down = self.low_rank_up = None
        if scheme.weight_clip == "learned":
            self.clip_logit = nn.Parameter(torch.full((linear.out_features, 1), CLIP_LOGIT))

    @property
    def inputs(self) -> SharedTransform:
        """The transform of this linear's input."""
        return self._inputs[0]

    def set_branch(self, down: Tensor, up: Tensor) -> None:
        """Give it a low-rank branch, down [r, K] and up [N, r]; trained if it starts from zero."""
        learned = self.scheme.low_rank.start == "zero"
        self.low_rank_down = nn.Parameter(down.float(), requires_grad=learned)
        self.low_rank_up = nn.Parameter(up.float(), requires_grad=learned)

    @torch.no_grad()
    def start_from(self, stored: Mapping[str, Tensor]) -> None:
        """Take over the learned branch and the learned clip of the same linear in another model.

        The clip is the one that makes the step sizes those of that model, as far as this weight reaches so far.
        """
        if self.scheme.low_rank is not None and self.scheme.low_rank.start == "zero":
            self.set_branch(stored["low_rank_down"], stored["low_rank_up"])
        if self.clip_logit is not None:
            whole, _ = self._grid(self.remainder(self.inputs.on_weight(self.weight)), 1.0)
            self.clip_logit.copy_(logit_of((stored["weight_scale"] / whole).mean(1, keepdim=True)))

    @torch.no_grad()
    def start_rounding(self) -> None:
        """Fix the grid of the weight as it is now, and make AdaRound's logits on it."""
        weight = self.remainder(self.inputs.on_weight(self.weight))
        scale, zero = self.weight_grid(weight)
        ratio = weight / per_value(scale, weight)
        self.round_grid = (scale, zero)
        # Kept, not made again when frozen: in another precision, whole ratios may fall on the other side.
        self.round_floor = ratio.floor() if zero is None else ratio.floor() + per_value(zero, weight)
        self.round_logit = nn.Parameter(initial_logit(ratio))

    def chosen_codes(self, up: Tensor) -> Tensor:
        """Codes [N, K] where `up` of each weight, 0 … 1, is the way from the lower to the upper neighbour."""
        return (self.round_floor + up).clamp(*integer_range(self.weight_bits))

    @property
    def _directions_are_out(self) -> bool:
        return self.low_rank_up is not None and self.scheme.low_rank.start == "svd"

    def remainder(self, transformed: Tensor) -> Tensor:
        """What of the transformed weight [N, K] is rounded: all, less the directions an SVD has taken out."""
        if not self._directions_are_out:
            return transformed
        return transformed - (self.low_rank_up @ self.low_rank_down).to(transformed.dtype)

    def weight_grid(self, remainder: Tensor) -> tuple[Tensor, Tensor | None]:
        """Step size and zero point of what is rounded, [N, G] each; None on symmetric grids."""
        if self.scheme.weight_clip == "mse":
            return self._least_error_grid(remainder)
        return self._grid(remainder, self._clip())

    def _clip(self) -> Tensor | float:
        return 1.0 if self.clip_logit is None else self.clip_logit.sigmoid()

    def _grid(self, weight: Tensor, clip: Tensor | float) -> tuple[Tensor, Tensor | None]:
        return grid(weight, self.weight_bits, self.scheme.symmetric_weights, clip, self.groups)

    @torch.no_grad()
    def _least_error_grid(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """For each output channel the clip with the least squared error of the weight."""
        least = best = None
        for clip in CLIPS_TRIED:
            scale, zero = self._grid(weight, clip)
            error = (fake_quantize(weight, scale, self.weight_bits, zero) - weight).square().sum(1, keepdim=True)
            factor = torch.full_like(error, clip)
            best = factor if best is None else torch.where(error < least, factor, best)
            least = error if least is None else torch.minimum(error, least)
        return self._grid(weight, best)

    def rounded_weight(self, remainder: Tensor) -> Tensor:
        """[N, K] on the grid, with straight-through gradients; between its two neighbours while AdaRound learns."""
        if self.round_logit is not None:
            return dequantize(self.chosen_codes(soft_round_up(self.round_logit)), *self.round_grid)
        if self.scheme.weight_clip == "mse":
            scale, zero = self._least_error_grid(remainder)
            return fake_quantize(remainder, scale, self.weight_bits, zero)
        return prepare(remainder, Mixing(), self._own_grid(), self._clip())

    def _own_grid(self) -> Grid:
        return Grid(self.weight_bits, self.scheme.symmetric_weights, self.groups)

    def _simulated_weight(self) -> Tensor:
        """[N, K] as inference will use it; made once for all passes between which nothing is learned."""
        learning = torch.is_grad_enabled()
        weight = None if learning else self._settled
        if weight is None:
            weight = self._transformed_and_rounded()
        # Looked at first: assigning to a module takes longer than some of its passes.
        if self._settled is not (None if learning else weight):
            self._settled = None if learning else weight
        return weight

    def _transformed_and_rounded(self) -> Tensor:
        if self._directions_are_out or self.round_logit is not None or self.scheme.weight_clip == "mse":
            return self.rounded_weight(self.remainder(self.inputs.on_weight(self.weight)))
        return self.inputs.on_weight(self.weight, self._own_grid(), self._clip())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N] in the dtype of `x`."""
        weight = self._simulated_weight()
        rounded = self.inputs(x)
        y = nn.functional.linear(rounded, weight, self.bias)
        if self.low_rank_up is not None:
            taken = rounded if self.scheme.low_rank.input == "quantized" else self.inputs.values(x)
            y = y + (taken @ self.low_rank_down.mT) @ self.low_rank_up.mT
        return y.to(x.dtype)
