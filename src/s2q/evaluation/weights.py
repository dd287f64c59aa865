"""Open the weights a user names for the learned measures: local, of the right class, complete; never fetched."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel, PreTrainedConfig, PreTrainedModel, ViTModel

_WANTED = {
    CLIPModel: "a CLIP model in transformers' format, such as openai/clip-vit-base-patch32",
    ViTModel: "a DINO ViT in transformers' format, such as facebook/dino-vitb16",
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, pickle.UnpicklingError)


def read_config(kind: type[PreTrainedModel], folder: Path) -> PreTrainedConfig:
    """The configuration in ``folder``.

    Raises:
        ValueError: no folder, no configuration, or one of another class than ``kind``.
    """
    wanted = _WANTED[kind]
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder on this machine (nothing is downloaded)"
        raise ValueError(f"{folder} {what}: give the folder of {wanted}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{folder} holds no model that transformers knows: give the folder of {wanted}") from error
    if not isinstance(config, kind.config_class):
        raise ValueError(f"{folder} holds a model of type {config.model_type!r}: give the folder of {wanted}")
    return config


def load_model(kind: type[PreTrainedModel], folder: Path, device: str, **options: Any) -> PreTrainedModel:
    """The model of class ``kind`` in ``folder``, in float32 on ``device``, ready for inference.

    Raises:
        ValueError: see :func:`read_config`; also weights that are absent, damaged or lack a part of the model.
    """
    read_config(kind, folder)
    try:
        model, loading = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except _UNREADABLE as error:
        raise ValueError(f"the weights in {folder} cannot be read: {_one_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"the weights in {folder} lack {len(missing)} tensors of the model ({', '.join(missing[:3])} …): "
            f"give the folder of {_WANTED[kind]}"
        )
    return model.to(device).eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        ValueError: none there that transformers can read.
    """
    # Without these files transformers makes up a tokenizer of three words and says nothing.
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise ValueError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt): copy it there")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{folder} has a tokenizer that transformers cannot read: {_one_line(error)}") from error


def load_head(file: Path) -> nn.Linear:
    """A linear layer to one value from a ``.pth`` or ``.safetensors`` file with ``weight`` [1, D] and ``bias`` [1].

    Raises:
        ValueError: anything else in the file; code in it is never run.
    """
    try:
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"the aesthetic head {file} cannot be read: {_one_line(error)}") from error
    shapes = {name: list(value.shape) for name, value in state.items()} if isinstance(state, dict) else {}
    if (
        set(shapes) != {"weight", "bias"}
        or len(shapes["weight"]) != 2
        or (shapes["weight"][0], shapes["bias"]) != (1, [1])
    ):
        raise ValueError(
            f"the aesthetic head {file} must hold weight [1, D] and bias [1], it holds {shapes or type(state)}"
        )
    head = nn.Linear(shapes["weight"][1], 1)
    head.load_state_dict(state)
    return head.float().eval()


def digest(path: Path) -> str:
    """SHA-256 over a file, or over all weight files of a model's folder in order of name."""
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            while piece := handle.read(1 << 22):
                total.update(piece)
    return total.hexdigest()


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
