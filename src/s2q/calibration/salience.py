"""How much a candidate (prompt, step) is worth as a calibration sample: Eqs. 3, 6, 7, 8 of arXiv 2508.04016."""

import torch
from torch import Tensor, nn

from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.blocks import first_call, to_device
from s2q.models.family import Family, patch_of
from s2q.numerics.spectral import gram_spectral_norm


def diffusion_salience(latents: Tensor) -> Tensor:
    """Eq. 3: C_diff(t) = ‖x_t − x_{t−1}‖² / ‖x_t‖², how far the step moves the latent.

    Args:
        latents: [T+1, …], most noise first, the finished latent last.

    Returns:
        float64 [T].
    """
    x = latents.double().flatten(1)
    return (x[:-1] - x[1:]).square().sum(1) / x[:-1].square().sum(1)


def moving(latents: Tensor) -> Tensor:
    """The numbers of a trajectory [T+1, …] that change in it, [T+1, n]: all, but for frames that a pipeline holds fixed.

    Image-to-video pipelines that have no further channels for an image keep its latent in the first frame instead (Wan 2.2
    5B, LTX, HunyuanVideo). It is a condition, and says nothing of how far a step goes.
    """
    x = latents.flatten(1)
    changes = (x != x[:1]).any(0)
    return x[:, changes] if changes.any() else x


def quantization_salience(tokens: Tensor) -> Tensor:
    """Eq. 6: C_quant(t) = ‖x_tᵀ x_t‖₂ (spectral norm), the size of the layer-wise Hessian's approximation.

    Args:
        tokens: [T, n, d].

    Returns:
        float64 [T].
    """
    return gram_spectral_norm(tokens)


def min_max(values: Tensor) -> Tensor:
    """Eq. 7: to [0, 1] over the whole pool; values that are all the same become 1, so that they do not decide."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


def combine(diffusion: Tensor, quantization: Tensor) -> Tensor:
    """Eq. 8: the product of both, normalised over the pool. Both [P, T] → [P, T]."""
    return min_max(diffusion) * min_max(quantization)


def patch_tokens(latents: Tensor, patch: tuple[int, int, int], layout: str) -> Tensor:
    """The latent as the transformer's patch embedding cuts it: [T, …] → [T, (F/p_t)·(h/p_h)·(w/p_w), C·p_t·p_h·p_w].

    Args:
        latents: [T, F, C, h, w], [T, C, F, h, w], or [T, S, C] of a pipeline that has cut them already.
        patch: frames, rows and columns of a patch.
        layout: which of them, "FChw", "CFhw" or "SC".
    """
    if layout == "SC":
        return latents
    x = latents if layout == "CFhw" else latents.transpose(1, 2)
    for axis, size in zip((2, 4, 6), patch, strict=True):
        x = x.unflatten(axis, (-1, size))
    # [T, C, F/p_t, p_t, h/p_h, p_h, w/p_w, p_w]: where a patch lies first, what it holds last.
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def salience_of_prompt(
    store: TrajectoryStore, prompt: int, model: nn.Module, family: Family, tokens: str
) -> tuple[Tensor, Tensor]:
    """C_diff and C_quant over the steps of one prompt, float64 [T] each.

    Args:
        tokens: "latents": x_t as patches of the latent, the literal reading of Eq. 6 (one number a step whatever the
            guidance branch, and free); "hidden_states": the input of the first block (the patches after embedding, of
            the conditional branch), where quantization really starts.
    """
    sections = store.sections(prompt)
    diffusion = torch.cat([diffusion_salience(moving(latents)) for latents in sections])
    if tokens == "latents":
        cut = (patch_tokens(latents[:-1], patch_of(model.config), family.layout) for latents in sections)
        return diffusion, torch.cat([quantization_salience(one) for one in cut])
    norms = []
    for step in range(len(diffusion)):
        arguments = to_device(store.arguments(prompt, step, "cond"), model.device)
        norms.append(gram_spectral_norm(first_call(model, family, arguments).states[family.states[0]][0]).cpu())
    return diffusion, torch.stack(norms)
