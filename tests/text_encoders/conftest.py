"""Text encoders rounded to nearest at four bits, each made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_encoders import with_encoder

from s2q.text_encoders.quantize import quantize_text_encoder, text_recipe


@pytest.fixture(scope="session")
def packed(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → folder of the packed encoder, groups of eight; tests must not change it."""
    parent, made = tmp_path_factory.mktemp("text"), {}

    def make(kind: str) -> Path:
        if kind not in made:
            source = with_encoder(tiny_pipeline, kind, parent / kind)
            recipe = text_recipe("rtn", "W4A16", ["linear.group_size=8"])
            made[kind] = quantize_text_encoder(str(source), recipe, parent / f"{kind}-W4A16").folder
        return made[kind]

    return make


@pytest.fixture(scope="session")
def packed_own(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's own text encoder, packed; tests must not change it."""
    out = tmp_path_factory.mktemp("own") / "W8A16"
    return quantize_text_encoder(str(tiny_pipeline), text_recipe("rtn", "W8A16"), out).folder
