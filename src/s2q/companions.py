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
        if (
            name == part
            or not isinstance(entry, list)
            or entry[0] is None
            or not (folder / name / "config.json").is_file()
        ):
            continue
        # As diffusers names where a class is: a library, or the folder of its pipelines that has one of its own.
        places = {"transformers": transformers, "diffusers": diffusers}
        place = places.get(entry[0]) or getattr(diffusers.pipelines, entry[0], diffusers)
        kind = getattr(place, str(entry[1]), None)
        if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
            continue
        if place is transformers:
            model = empty_text_encoder(folder / name, entry[1])
        else:
            with torch.device("meta"):
                model = kind.from_config(json.loads((folder / name / "config.json").read_text(encoding="utf-8")))
        counted[name] = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return counted
