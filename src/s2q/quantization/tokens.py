"""How much each token counts in the distillation: Eq. 11 of arXiv 2508.04016."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2q.models.attention import AttentionTap
from s2q.models.family import Family


@torch.no_grad()
def received_by_block(
    model: nn.Module, family: Family, arguments: Mapping[str, Any], perturbed: bool = False
) -> list[Tensor]:
    """What each token receives in the self-attention of each block, in one pass of the float model.

    Args:
        perturbed: whether the call may pass the attention of some blocks by, where nobody receives anything then.

    Returns:
        one float32 [B, S] a block, tokens in the order of self-attention, text included.
    """
    received: dict[int, Tensor] = {}
    with AttentionTap(model, family, received.__setitem__, may_miss=perturbed):
        model(**arguments)
    nothing = torch.zeros_like(next(iter(received.values())))
    return [received.get(index, nothing) for index in range(len(family.blocks(model)))]


def token_weights(received: Tensor, lambda_min: float = 0.5, lambda_max: float = 1.0) -> Tensor:
    """Eq. 11: λ_j = (S_j − min S)/(max S − min S) · (λ_max − λ_min) + λ_min, over the tokens of each row.

    A row whose tokens all receive the same gets λ_max throughout.

    Args:
        received: [B, S].

    Returns:
        [B, S] in [λ_min, λ_max].
    """
    low = received.amin(dim=1, keepdim=True)
    span = received.amax(dim=1, keepdim=True) - low
    share = torch.where(span > 0, (received - low) / span.clamp(min=torch.finfo(received.dtype).tiny), 1.0)
    return share * (lambda_max - lambda_min) + lambda_min


def weights_of_all(weights: Tensor, tokens: int, lambda_max: float = 1.0) -> Tensor:
    """Weights [B, S] of the tokens whose attention is seen, then λ_max for those where it is not: [B, `tokens`].

    Such are the sound beside the video of LTX-2, and the second of the two streams of a control block.
    """
    return nn.functional.pad(weights, (0, tokens - weights.shape[1]), value=lambda_max)


def weights_by_part(received: Tensor, parts: Sequence[slice], lambda_min: float, lambda_max: float) -> Tensor:
    """Eq. 11 over each part of the tokens by itself: `parts` are neighbours that cover all of [B, S]."""
    return torch.cat([token_weights(received[:, part], lambda_min, lambda_max) for part in parts], dim=1)
