"""The HunyuanVideo demo's text side: a Llama read before its last layers, and a CLIP encoder read at its end token."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, LlamaTokenizer

from s2q.demo import GENERATION, scenes
from s2q.demo.text import WIDTH

MAX_TEXT_TOKENS = GENERATION["hunyuanvideo"]["max_sequence_length"]
CLIP_WIDTH = 32
_TEMPLATE = GENERATION["hunyuanvideo"]["prompt_template"]["template"]
_CLIP_LENGTH = 77  # fixed by the pipeline
_SKIPPED_LAYERS = 2  # fixed by the pipeline, which reads the states before the last two layers


def _pieces(spellings: list[list[str]], special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges with which byte pair encoding makes one piece of every word, spelt as its symbols."""
    merges: list[tuple[str, str]] = []
    alphabet = sorted({symbol for word in spellings for symbol in word})
    while pairs := Counter(pair for word in spellings for pair in itertools.pairwise(word)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))  # ties by name: the same on every machine
        spellings = [_merge(word, merges[-1]) for word in spellings]
    pieces = [*special, *alphabet, *("".join(merge) for merge in merges)]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, merges


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer() -> LlamaTokenizer:
    """A ``LlamaTokenizer`` that makes one piece of every word of every caption, after a start token."""
    first = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary, merges = _pieces([["▁", *word] for word in scenes.words()], first)
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token="<pad>",
        padding_side="right",
        add_bos_token=True,
        add_eos_token=False,
    )


def build_tokenizer_2() -> CLIPTokenizer:
    """A ``CLIPTokenizer`` that makes one piece of every word of every caption, between start and end tokens."""
    first = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = _pieces([[*word[:-1], word[-1] + "</w>"] for word in scenes.words()], first)
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def build_text_encoder(vocabulary: int, pad: int, layers: int = 2 + _SKIPPED_LAYERS) -> LlamaModel:
    """An untrained Llama; the pipeline never reads its last two layers, so they stay untrained."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=pad,
        )
    )


def build_text_encoder_2(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder, read at the end token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CLIP_WIDTH,
            intermediate_size=2 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=_CLIP_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize_captions(captions: list[str]) -> dict[str, torch.Tensor]:
    """Token ids of both encoders and the first one's mask, padded as ``HunyuanVideoPipeline`` pads them.

    The second encoder is causal and read at its end token, so the padding behind that is cut off here.
    """
    texts = [_TEMPLATE.format(caption) for caption in captions]
    settings = {"padding": "max_length", "max_length": MAX_TEXT_TOKENS, "truncation": True, "return_tensors": "pt"}
    found = build_tokenizer()(texts, **settings)
    return {
        "input_ids": found.input_ids,
        "attention_mask": found.attention_mask,
        "input_ids_2": build_tokenizer_2()(captions, **settings).input_ids,
    }


def encode_captions(denoiser: nn.ModuleDict, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The transformer's conditions, as ``HunyuanVideoPipeline`` makes them."""
    mask = tokens["attention_mask"]
    states = denoiser["text_encoder"](
        input_ids=tokens["input_ids"], attention_mask=mask, output_hidden_states=True
    ).hidden_states[-(_SKIPPED_LAYERS + 1)]
    pooled = denoiser["text_encoder_2"](tokens["input_ids_2"]).pooler_output
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask.float(), "pooled_projections": pooled}
