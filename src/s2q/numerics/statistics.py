"""Rank correlation, for salience pooled over time (PTQ4DiT)."""

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Rank of each value of [K] among all, from 0, ties sharing their mean rank: float64 [K]."""
    order = torch.argsort(values, stable=True)
    _, inverse, counts = torch.unique_consecutive(values[order], return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean = last - (counts.double() + 1) / 2
    out = torch.empty(len(values), dtype=torch.float64, device=values.device)
    out[order] = mean[inverse]
    return out


def spearman(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of two vectors [K]; 0 if one of them is constant."""
    a, b = ranks(one), ranks(other)
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0
