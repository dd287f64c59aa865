"""Tokens that have gone wrong before, or could."""

import torch
from torch import Tensor


def rows(shape: tuple[int, int], kind: str = "normal", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random tokens [M, K] of one kind."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        x[::2] = 0
    elif kind == "ties":  # halves of a step, which round to even
        x = (x * 16).round() / 2
    elif kind == "outlier":
        x[:, 0] *= 1e4
    elif kind == "tiny":
        x *= 1e-30
    elif kind == "denormal":
        x *= 1e-38
    elif kind == "huge":
        x *= 1e32
    elif kind == "positive":
        x = x.abs()
    return x.to(dtype)
