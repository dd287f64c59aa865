"""A quantized tiny transformer, as plain diffusers loads it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import CogVideoXTransformer3DModel

from s2q.run import Quantized


@pytest.fixture
def folder(quantized: Callable[..., Quantized]) -> Path:
    """A W4A6 transformer with everything a checkpoint can have."""
    return quantized().folder


@pytest.fixture
def model(folder: Path) -> CogVideoXTransformer3DModel:
    """That transformer, freshly loaded."""
    return CogVideoXTransformer3DModel.from_pretrained(folder).eval()
