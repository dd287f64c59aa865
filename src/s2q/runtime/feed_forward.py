"""GELU in the pass that makes its input: diffusers' feed-forwards hold the linear before it and apply it one after the other.

On a CPU, GELU of a feed-forward takes torch as long as all other elementwise work of a block together.
"""

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn

from s2q.runtime.linear import QuantLinear


class FusedGELU(GELU):
    """What `fuse_gelu` makes of diffusers' `GELU` by tanh: the same parameters and names, and one pass where that is safe."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As `GELU.forward`, of float32 sums: the linear's output is not narrowed in between."""
        if _alone(self.proj) and not (torch.is_grad_enabled() and hidden_states.requires_grad):
            return self.proj(hidden_states, gelu_tanh=True)
        return super().forward(hidden_states)


def _alone(linear: nn.Module) -> bool:
    """Whether nothing stands between the linear and GELU: no adapter, nobody who wants to see its output."""
    return type(linear) is QuantLinear and not linear._forward_hooks


def fuse_gelu(model: nn.Module) -> None:
    """Fuse every `GELU` by tanh whose linear is packed; a second time changes nothing."""
    for module in model.modules():
        if type(module) is GELU and module.approximate == "tanh" and isinstance(module.proj, QuantLinear):
            module.__class__ = FusedGELU


def part_gelu(model: nn.Module) -> None:
    """Undo `fuse_gelu`."""
    for module in model.modules():
        if type(module) is FusedGELU:
            module.__class__ = GELU
