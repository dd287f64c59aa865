"""The demo's text side: a tokenizer with one piece a word, and a T5 encoder small enough to train with the rest."""

from __future__ import annotations

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from s2q.demo import scenes

MAX_TEXT_TOKENS = 16
WIDTH = 64


def build_tokenizer() -> T5Tokenizer:
    """A ``T5Tokenizer`` that knows every word of every caption and nothing else."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in scenes.words())]
    return T5Tokenizer(vocab=[(piece, 0.0 if index < 3 else -1.0) for index, piece in enumerate(pieces)], extra_ids=0)


def build_text_encoder(vocabulary: int, layers: int = 2) -> T5EncoderModel:
    """An untrained T5 encoder for ``vocabulary`` pieces, without dropout."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=16,
            num_heads=4,
            d_ff=2 * WIDTH,
            num_layers=layers,
            dropout_rate=0.0,
        )
    )


def tokenize(tokenizer: T5Tokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids, int64 [N, MAX_TEXT_TOKENS], padded exactly as ``CogVideoXPipeline`` pads them."""
    return tokenizer(
        prompts, padding="max_length", max_length=MAX_TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
