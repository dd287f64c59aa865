"""The family of a model: the one that is registered for its class, else one that is guessed from its shape."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from s2q.models.family import Family, known, register, registered

_LOG = logging.getLogger(__name__)

# What blocks of diffusers call the tensors that flow through them, and their self-attention.
STATES = ("hidden_states", "encoder_hidden_states")
SELF_ATTENTIONS = ("attn1", "attn", "self_attn", "attention")
TEXT_WIDTHS = ("text_embed_dim", "text_dim", "caption_channels", "cross_attention_dim")


def resolve(model: nn.Module | str) -> Family:
    """The family of a model, or of a model's class name. A model of a class without a row is guessed at, see `guess`.

    Raises:
        ValueError: no family is known for it, nor can one be guessed.
    """
    name = model if isinstance(model, str) else type(model).__name__
    family = registered(name)
    if family is not None:
        return family
    if isinstance(model, str):
        raise ValueError(f"{name} is not a video transformer that s2q knows. {_known()}")
    return register(guess(model))


def resolve_folder(folder: Path, name: str) -> Family:
    """The family of the transformer of class `name` in `folder`, without its weights.

    Raises:
        ValueError: as `resolve`, or a class that diffusers does not have, or another one than the folder holds.
        OSError: an unknown class, and no configuration to guess from.
    """
    model_class = getattr(diffusers, name, None)
    if registered(name) is not None or model_class is None:
        return resolve(name)
    config = json.loads((folder / "config.json").read_text())
    if config.get("_class_name") != name:
        return resolve(name)
    with torch.device("meta"):
        return resolve(model_class.from_config(config))


def guess(model: nn.Module) -> Family:
    """A family for a transformer that has no row, with a warning that says what was guessed.

    Raises:
        ValueError: no list of blocks, or no self-attention in them.
    """
    name = type(model).__name__
    lists = [attribute for attribute, child in model.named_children() if _holds_blocks(child)]
    if not lists:
        raise ValueError(
            f"{name} is not a video transformer that s2q knows, and has no list of blocks (an nn.ModuleList of modules "
            f"with linears) to guess from. {_known()}"
        )
    blocks = [block for attribute in lists for block in getattr(model, attribute)]
    own = next((own for own in SELF_ATTENTIONS if all(hasattr(block, own) for block in blocks)), None)
    if own is None:
        raise ValueError(
            f"{name} is not a video transformer that s2q knows, and the blocks of {', '.join(lists)} have no "
            f"self-attention called {', '.join(SELF_ATTENTIONS)}. {_known()}"
        )
    # A text that blocks are given but do not pass on is for cross-attention, which is another module then.
    crossed = any(hasattr(block, "attn2") for block in blocks)
    states = STATES[:1] if crossed else STATES
    made = Family(
        name=name,
        pipeline="",
        model_classes=(name,),
        block_lists=tuple(lists),
        states=states,
        tokens=states,
        self_attention=own,
        shared_inputs=(tuple(f"{own}.to_{letter}" for letter in "qkv"),),
        modulation=("norm*.linear*", "*adaln*", "*modulation*"),
        text_linears=("attn2.to_k", "attn2.to_v")
        if crossed
        else ("attn*.add_?_proj", "attn*.to_add_out", "ff_context.*"),
        text_width=_text_width(getattr(model, "config", {})),
    )
    _LOG.warning(
        "s2q has no row for %s. Guessed: blocks in %s, %s flow from block to block, self-attention is %s, latents are "
        "[C, F, h, w]. If this is wrong, register a Family: docs/architectures.md",
        name,
        ", ".join(lists),
        " and ".join(states),
        own,
    )
    return made


def _known() -> str:
    return f"Known: {', '.join(known())}. docs/architectures.md tells how to add one."


def _holds_blocks(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList) or len(module) == 0:
        return False
    return all(
        not isinstance(child, nn.Linear) and any(isinstance(part, nn.Linear) for part in child.modules())
        for child in module
    )


def _text_width(config: Mapping[str, Any]) -> str:
    return next((key for key in TEXT_WIDTHS if key in config), TEXT_WIDTHS[0])
