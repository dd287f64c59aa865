"""What the models beside a pipeline's transformer take in memory: text encoders, VAE, a second transformer."""

import json
from pathlib import Path

import diffusers
import torch
import transformers

from s2q.text_encoders.opening import empty_text_encoder


def companion_bytes(folder: Path, part: str, dtype: torch.dtype) -> dict[str, int]:
    """Model → bytes of its weights in `dtype`, of all in the pipeline in `folder` but `part`, from configurations alone."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    counted = {}
    for name, entry in index.items():
        if name == part or not isinstance(entry, list) or not (folder / name / "config.json").is_file():
            continue
        library = transformers if entry[0] == "transformers" else diffusers
        kind = getattr(library, str(entry[1]), None)
        if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
            continue  # a class of the pipeline's own, or no model
        if library is transformers:
            model = empty_text_encoder(folder / name, entry[1])
        else:
            with torch.device("meta"):
                model = kind.from_config(json.loads((folder / name / "config.json").read_text(encoding="utf-8")))
        counted[name] = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return counted
