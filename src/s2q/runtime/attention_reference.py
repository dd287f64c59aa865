"""The plain-torch definition of int8 attention: the oracle of the tests, and the path where there is no native code.

    q_i = round(q / Δ_q), k_j = round((k − k̄) / Δ_k), v_j = round((v − v̄) / Δ_v)        int8
    t_ij = (Σ_d q_id k_jd) · (Δ_k · (Δ_q · scale · log2 e)) + mask · log2 e               the sum exact, in int32
    p_ij = 255 · 2^(t_ij − top_i), top_i the largest t of the row in a block of 64 keys   unsigned 8 bits, see `shares`
    out  = (Σ_blocks 2^(top − max) Σ_j p_ij v_j) / (Σ_blocks 2^(top − max) Σ_j p_ij) · Δ_v + v̄        sums over j exact

Δ_q is of a token and head, Δ_k of a block of 64 keys and head, Δ_v of a channel and head; k̄ and v̄ are means over tokens.
Subtracting k̄ moves all scores of a query by the same amount, which softmax does not see (SageAttention, arXiv
2410.02367); shares sum to 1, so v̄ comes back whole. Blocks are taken in order, as in online softmax: no score outlives its
block, and a block far below the maximum still has shares of 8 bits.

Keys of a block have one step, so that without a mask their scores are compared as integers; shares are computed in 16 bits,
of which a register holds twice as many as of float32. Everything else between the exact sums is one float32 operation at a
time in a fixed order: the native code gives the same bits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

KEYS = 64
"""Keys of a block."""
OCTAVE = 2048
"""Parts of a factor of two in which a score's distance from the largest is counted."""
FURTHEST = 32767
"""Distances are cut off there, at 16 octaves: what is further has no share."""
FRACTION = (32640, 22574, 7539, 1286)
"""255 · 128 · 2^−f on [0, 1) as c0 − f (c1 − f (c2 − f c3)); relative error at most 1.5·10⁻⁴ (a code of a share is 4·10⁻³)."""
POWERS = (1.0, 0.6930635690344632, 0.2394567375505338, 0.05322356574378527, 0.006831887736586854)
"""2^f on [−1, 0] by powers of f, exact at 0; relative error at most 3·10⁻⁶."""
SMALLEST_POWER = -126.0
LOWEST_BIAS = -3e38
"""Finite masks stay above −∞ when turned into powers of two: what they hide throughout is averaged, as in torch."""


class Means(NamedTuple):
    """What is subtracted before rounding, float32."""

    key: Tensor
    """[B, H, D]"""
    value: Tensor
    """[B, H, D_v]"""


def means(key: Tensor, value: Tensor) -> Means:
    """Means over the tokens of each head and channel; [B, H, S_k, D] and [B, H, S_k, D_v]."""
    return Means(*(tensor.mean(dim=2, dtype=torch.float32) for tensor in (key, value)))


def int8_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, centre: Means
) -> Tensor:
    """Attention of the module's formulas, [B, H, S_q, D_v] in the dtype of `query`.

    NaN or infinity in a query gives NaN in its row, in the keys NaN in all rows of the head, in the values NaN in the
    channel; queries that may see nothing give 0.

    Args:
        query, key, value: [B, H, S_q, D], [B, H, S_k, D], [B, H, S_k, D_v].
        mask: boolean (true is seen) or additive, broadcastable to [B, H, S_q, S_k].
        scale: of the scores.
    """
    row_step, codes = _rounded(query.float(), dim=3)
    key_step, key_codes = _keys_rounded(key.float() - centre.key[:, :, None])
    value_step, value_codes = _rounded(value.float() - centre.value[:, :, None], dim=2)
    factor = row_step * _float32(scale * math.log2(math.e))
    poison = (factor + key_step.amax(dim=2, keepdim=True)) * 0
    most = torch.full_like(factor, -math.inf)
    total = torch.zeros_like(factor)
    attended = query.new_zeros(*query.shape[:3], value.shape[3], dtype=torch.float32)
    for start in range(0, key.shape[2], KEYS):
        block = slice(start, start + KEYS)
        sums = codes @ key_codes[:, :, block].mT
        step = key_step[:, :, start // KEYS : start // KEYS + 1] * factor
        if mask is None:
            highest = sums.amax(dim=3, keepdim=True)
            top, gap = highest.float() * step, (highest - sums).float() * (step * OCTAVE)
        else:
            bias = _bias(mask, block)
            poison = poison + torch.where(bias.isnan() | bias.isposinf(), math.nan, 0.0).sum(dim=-1, keepdim=True)
            scores = sums.float() * step + bias
            top = scores.amax(dim=3, keepdim=True)
            gap = (top - scores) * OCTAVE
        larger = torch.maximum(most, top)
        before, now = power_of_two(most - larger), power_of_two(top - larger)
        share = shares(gap).double()
        total = total * before + share.sum(dim=3, keepdim=True).float() * now
        attended = attended * before + (share @ value_codes[:, :, block]).float() * now
        most = larger
    out = attended / total * value_step + centre.value[:, :, None]
    return (torch.where(total > 0, out, 0.0) + poison).to(query.dtype)


def shares(gap: Tensor) -> Tensor:
    """255 · 2^(−gap / 2048) in whole numbers, from gap ≥ 0 in float32; NaN is as far as can be.

    Each step fits unsigned 16 bits; a product is its upper 16.
    """
    distance = torch.where(gap < FURTHEST, gap, float(FURTHEST)).round().long()
    whole, part = distance // OCTAVE, distance % OCTAVE * (2**16 // OCTAVE)
    value = torch.full_like(part, FRACTION[-1])
    for coefficient in FRACTION[-2::-1]:
        value = coefficient - (part * value >> 16)
    return ((value >> whole) + 64) >> 7


def power_of_two(x: Tensor) -> Tensor:
    """2^x by the polynomial, for x ≤ 0 in float32; below 2^−126, and for NaN, what 2^−126 gives."""
    x = torch.where(x > SMALLEST_POWER, x, SMALLEST_POWER)
    whole = x.trunc()
    part, coefficients = x - whole, [_float32(power) for power in POWERS]
    value = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * part + coefficient
    return torch.ldexp(value, whole)


def _keys_rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """A step for each block of keys, [B, H, blocks, 1], and codes."""
    largest = torch.stack([part.abs().amax(dim=(2, 3)) for part in x.split(KEYS, dim=2)], dim=2)[..., None]
    step = _step(largest)
    return step, _codes(x, step.repeat_interleave(KEYS, dim=2)[:, :, : x.shape[2]])


def _rounded(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Steps and codes; float64, so that products of codes are exact."""
    step = _step(x.abs().amax(dim=dim, keepdim=True))
    return step, _codes(x, step)


def _step(largest: Tensor) -> Tensor:
    """NaN where something is not finite."""
    step = largest / 127
    return torch.where(largest.isfinite(), torch.where(step > 0, step, 1.0), math.nan)


def _codes(x: Tensor, step: Tensor) -> Tensor:
    """−127…127."""
    return (x / step).round().clamp(-127, 127).nan_to_num(nan=0.0).double()


def _bias(mask: Tensor, block: slice) -> Tensor:
    """What the mask adds to the scores of a block of keys."""
    part = mask if mask.shape[-1] == 1 else mask[..., block]
    if part.dtype == torch.bool:
        return torch.where(part, 0.0, -math.inf)
    part = part.float()
    return torch.where(part == -math.inf, part, (part * _float32(math.log2(math.e))).clamp(min=LOWEST_BIAS))


def _float32(value: float) -> float:
    """The nearest float32."""
    return float(torch.tensor(value, dtype=torch.float32))
