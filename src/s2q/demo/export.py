"""Writes the trained parts as one folder that plain diffusers loads."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from torch import nn

from s2q.demo.diffusion import build_scheduler
from s2q.demo.text import build_tokenizer

MODEL_CARD = "README.md"


def _stored_as(dtype: torch.dtype, part: nn.Module) -> nn.Module:
    return copy.deepcopy(part).to("cpu", dtype).eval()


def export_pipeline(autoencoder: AutoencoderKLCogVideoX, denoiser: nn.ModuleDict, folder: Path) -> None:
    """Write a complete ``CogVideoXPipeline`` to ``folder``, keeping the model card there.

    The folder is written beside its place and then swapped in, so that no reader meets half a pipeline.
    """
    pipeline = CogVideoXPipeline(
        tokenizer=build_tokenizer(),
        # Without a torch_dtype, transformers loads what is stored and diffusers loads float32. Stored as float32, the
        # text encoder (0.3 MB) agrees with the rest either way.
        text_encoder=_stored_as(torch.float32, denoiser["text_encoder"]),
        vae=_stored_as(torch.bfloat16, autoencoder),
        transformer=_stored_as(torch.bfloat16, denoiser["transformer"]),
        scheduler=build_scheduler(),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        fresh, stale = Path(beside, "fresh"), Path(beside, "stale")
        pipeline.save_pretrained(fresh)
        if (card := folder / MODEL_CARD).exists():
            shutil.copy(card, fresh / MODEL_CARD)
        if folder.exists():
            os.rename(folder, stale)
        os.rename(fresh, folder)
