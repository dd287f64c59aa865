"""Tiny random text encoders of the kinds that video pipelines have."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

T5 = {"vocab_size": 40, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2}
GATED = {"feed_forward_proj": "gated-gelu"}
LLAMA = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: T5EncoderModel(T5Config(**T5)),
    "t5-gated": lambda: T5EncoderModel(T5Config(**T5, **GATED)),
    "umt5": lambda: UMT5EncoderModel(UMT5Config(**T5, **GATED)),
    "llama": lambda: LlamaModel(LlamaConfig(**LLAMA, **SPECIAL)),
    "clip": lambda: CLIPTextModel(CLIPTextConfig(**LLAMA, **SPECIAL, max_position_embeddings=16)),
}
IDS = torch.tensor([[5, 9, 31, 7, 2], [8, 8, 4, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def make_encoder(kind: str) -> PreTrainedModel:
    """The untrained encoder, weights from a fixed seed."""
    torch.manual_seed(0)
    return ENCODERS[kind]().eval()


@torch.no_grad()
def encode(model: PreTrainedModel) -> Tensor:
    """What it makes of `IDS`, [2, 5, 24], without what it makes of padding."""
    return model(input_ids=IDS, attention_mask=MASK)[0][MASK.bool()]


def with_encoder(pipeline: Path, kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A copy of a pipeline with the encoder in the place of its own, which need not fit it."""
    model = make_encoder(kind).to(dtype)
    shutil.copytree(pipeline, folder)
    shutil.rmtree(folder / "text_encoder")
    model.save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", type(model).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
