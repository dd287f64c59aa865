"""Open a pipeline's text encoder with its blocks left on disk, or one that was quantized."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from s2q.checkpoint import PROVENANCE_NAME, QUANT_METHOD, CheckpointError
from s2q.models.folder import PipelineError
from s2q.shards import TEXT_INDEX_NAME, TEXT_SINGLE_NAME, weight_places
from s2q.storage import read_json

PART = "text_encoder"


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder whose blocks are read from disk, linear by linear, when they run."""

    part: str
    """What the pipeline calls it."""
    folder: Path
    model: nn.Module
    blocks: list[tuple[str, nn.Module]]
    """Name and module of each block, in the order in which they run."""

    def linears(self) -> list[str]:
        """Names of the linears inside the blocks."""
        return [f"{name}.{inner}" for name, block in self.blocks for inner, _ in block_linears(block)]


def block_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Name inside the block, and module, of each of its linears."""
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def text_encoder_classes(folder: Path) -> dict[str, str]:
    """Part → class of each text encoder of the pipeline in `folder`."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {
        name: entry[1]
        for name, entry in index.items()
        if name.startswith(PART) and isinstance(entry, list) and entry[0] == "transformers"
    }


def empty_text_encoder(folder: Path, class_name: str) -> nn.Module:
    """The model that `config.json` in `folder` describes, without weights."""
    model_class = getattr(transformers, class_name)
    with torch.device("meta"):
        return model_class(model_class.config_class.from_pretrained(folder))


def block_list(model: nn.Module) -> str:
    """Name of the list of blocks: the largest of the lists that lie in no other list.

    Raises:
        PipelineError: the model has none.
    """
    outermost: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            outermost[name] = sum(p.numel() for p in module.parameters())
    if not outermost:
        raise PipelineError(f"{type(model).__name__} has no list of blocks: s2q does not know what to quantize in it")
    return max(outermost, key=lambda name: outermost[name])


def open_text_encoder(folder: Path, part: str, device: str, scratch: Path) -> TextEncoder:
    """The text encoder `part` of the pipeline in `folder`, in the dtype that it is stored in.

    Args:
        device: where it runs.
        scratch: a folder for weights that cannot be read from where they are.

    Raises:
        PipelineError: no such part, or its weights are not safetensors.
    """
    classes = text_encoder_classes(folder)
    if part not in classes:
        there = ", ".join(classes) or "none that is a model of transformers"
        raise PipelineError(f"{folder} has no text encoder {part!r}: it has {there}")
    source = folder / part
    if not any(source.glob("model*.safetensors")):
        raise PipelineError(f"{source} has no model.safetensors: s2q reads no other format (pickle could run code)")
    skeleton = empty_text_encoder(source, classes[part])
    blocks = block_list(skeleton)
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what is wanted here
    model = getattr(transformers, classes[part]).from_pretrained(
        source,
        dtype="auto",
        device_map=blocks_on_disk(skeleton, blocks, device),
        offload_folder=str(scratch),
    )
    if getattr(model.config, "quantization_config", None) is not None:
        raise PipelineError(f"{source} is quantized already")
    listed = model.get_submodule(blocks)
    return TextEncoder(part, source, model.eval(), [(f"{blocks}.{name}", it) for name, it in listed.named_children()])


def blocks_on_disk(model: nn.Module, blocks: str, device: str) -> dict[str, Any]:
    """A device map: the list of blocks on disk, everything else on `device`; accelerate wants no name inside another."""
    placed: dict[str, Any] = {}
    prefix, owner = "", model
    for step in blocks.split("."):
        own = [name for name, _ in owner.named_parameters(recurse=False)]
        others = [name for name, _ in owner.named_children() if name != step]
        placed |= dict.fromkeys([f"{prefix}{name}" for name in own + others], device)
        prefix, owner = f"{prefix}{step}.", owner.get_submodule(step)
    return placed | {blocks: "disk"}


def load_text_encoders(
    pipeline: Path, folders: Sequence[Path], dtype: torch.dtype, device: str
) -> dict[str, nn.Module]:
    """Part → text encoder in each of `folders`, which `s2q quantize-text` wrote, for the pipeline in `pipeline`.

    Raises:
        PipelineError: no quantized text encoder there, one that the pipeline does not have, or two for the same part.
        CheckpointError: it is incomplete or damaged.
    """
    classes, loaded = text_encoder_classes(pipeline), {}
    for folder in folders:
        config = read_json(folder / "config.json") or {}
        if config.get("quantization_config", {}).get("quant_method") != QUANT_METHOD or "architectures" not in config:
            raise PipelineError(f"{folder} is no text encoder that s2q quantize-text wrote")
        name, part = config["architectures"][0], (read_json(folder / PROVENANCE_NAME) or {}).get("part", PART)
        if classes.get(part) != name:
            wanted = ", ".join(f"{part} {own}" for part, own in classes.items()) or "none"
            raise PipelineError(f"{folder} is a {name} for {part}, the text encoders of the pipeline are: {wanted}")
        if part in loaded:
            raise PipelineError(f"{folder} is a second {part}: give one")
        weight_places(folder, TEXT_SINGLE_NAME, TEXT_INDEX_NAME)  # transformers takes an index at its word
        try:
            loaded[part] = getattr(transformers, name).from_pretrained(folder, dtype=dtype).to(device)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            # What transformers stumbles over in a configuration that makes no sense is no error of its own.
            raise CheckpointError(f"{folder / 'config.json'} describes no {name} that can be made: {error}") from error
    return loaded
