"""Writes the trained parts as one folder that plain diffusers loads."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

MODEL_CARD = "README.md"

Part = TypeVar("Part", bound=nn.Module)


def stored_as(dtype: torch.dtype, part: Part) -> Part:
    """A copy of a trained part as it goes into a pipeline's folder.

    Without a torch_dtype, transformers loads what is stored and diffusers loads float32. Text encoders (some 0.3 MB)
    are stored as float32, so that they agree with the rest either way; what is large is stored as bfloat16.
    """
    return copy.deepcopy(part).to("cpu", dtype).eval()


def export_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write ``pipeline`` to ``folder``, keeping the model card there.

    The folder is written beside its place and then swapped in, so that no reader meets half a pipeline.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        fresh, stale = Path(beside, "fresh"), Path(beside, "stale")
        pipeline.save_pretrained(fresh)
        if (card := folder / MODEL_CARD).exists():
            shutil.copy(card, fresh / MODEL_CARD)
        if folder.exists():
            os.rename(folder, stale)
        os.rename(fresh, folder)
