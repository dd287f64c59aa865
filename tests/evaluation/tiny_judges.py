"""Tiny random CLIP, DINO ViT and aesthetic head on disk: the right classes and files, numbers of no meaning."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

FEATURES = 12


def make_clip(folder: Path, features: int = FEATURES, seed: int = 0) -> Path:
    """A CLIP of 16x16 pixels with a tokenizer that knows single letters and one pair."""
    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "re",
        "red</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)}, merges=[("r", "e"), ("re", "d</w>")]
    )
    layers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text = layers | ends | {"vocab_size": len(vocabulary), "max_position_embeddings": 10}
    vision = layers | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=features)
    model = CLIPModel(config)
    for parameter in model.parameters():  # the usual start is so small that all features look alike
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dino(folder: Path) -> Path:
    """A ViT of 16x16 pixels, saved as DINO's are: without a pooling layer."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = ViTModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def make_head(file: Path, features: int = FEATURES) -> Path:
    """A head as LAION's file holds it: the state of `nn.Linear(features, 1)`."""
    torch.manual_seed(2)
    torch.save(torch.nn.Linear(features, 1).state_dict(), file)
    return file


def set_model_type(folder: Path, name: str) -> None:
    """Make a folder claim to hold another model."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": name}))
