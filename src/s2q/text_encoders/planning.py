"""The size of a pipeline's text encoders before and after, from configurations alone: no weights are loaded."""

import math
from pathlib import Path
from typing import NamedTuple

from s2q.checkpoint import tensor_layout
from s2q.models.stored import ASSUMED, stored_bytes
from s2q.quantization.schemes import scheme_spec
from s2q.recipe import Recipe
from s2q.text_encoders.opening import block_linears, block_list, empty_text_encoder, text_encoder_classes


class TextSize(NamedTuple):
    """Of one text encoder."""

    model: str
    linears: int
    """How many would be quantized."""
    float_bytes: int
    quantized_bytes: int
    float_bytes_assumed: bool
    """Whether nothing tells how a weight is stored; then two bytes are assumed."""


def text_sizes(folder: Path, recipe: Recipe) -> dict[str, TextSize]:
    """Part → size of each text encoder of the pipeline in `folder`."""
    return {
        part: _size(folder / part, class_name, recipe)
        for part, class_name in text_encoder_classes(folder).items()
        if (folder / part / "config.json").is_file()
    }


def _size(folder: Path, class_name: str, recipe: Recipe) -> TextSize:
    model = empty_text_encoder(folder, class_name)
    parameters = sum(p.numel() for p in model.parameters())
    stored = stored_bytes(folder, "model", parameters)
    element = stored or ASSUMED
    before = element * parameters
    after, linears = before, block_linears(model.get_submodule(block_list(model)))
    for _, linear in linears:
        layout = tensor_layout(
            linear.out_features, linear.in_features, scheme_spec(recipe.linear, linear.in_features)
        ).values()
        after += sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout) - element * linear.weight.numel()
    return TextSize(class_name, len(linears), before, after, stored is None)
