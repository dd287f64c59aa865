"""Quantized weights as float ones, for programs that do not know s2q: a diffusers folder, or one file for ComfyUI.

The transforms are undone, so y = x Wᵀ + b is the quantized layer's function with activations in floating point.
"""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from s2q.deferred import Deferred, made
from s2q.export.source import QuantizedFolder
from s2q.shards import write_weights
from s2q.storage import replacing, replacing_folder, write_json

# diffusers' name of a part → the name in the released Wan files, which ComfyUI reads; in this order.
_WAN = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.add_(k|v)_proj\.", r".\1_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm_between."),
    (r"\.norm3\.", ".norm2."),
    (r"\.norm_between\.", ".norm3."),
)
ORIGINAL_NAMES = {"WanTransformer3DModel": _WAN}
"""Class → renaming. The names of other classes stay diffusers'."""


def float_state(source: QuantizedFolder, dtype: torch.dtype | None = None) -> dict[str, Deferred]:
    """Every tensor of the model in floating point, by diffusers' names; a weight is dequantized when it is asked for.

    Args:
        dtype: of the dequantized weights; None is that of most of the checkpoint's float tensors. Tensors that were
            never quantized are as they stand in the checkpoint, bit for bit.
    """
    state = source.kept()
    if dtype is None:
        sizes: Counter[torch.dtype] = Counter()
        for tensor in (kept.like for kept in state.values()):
            if tensor.is_floating_point():
                sizes[tensor.dtype] += tensor.numel()
        dtype = sizes.most_common(1)[0][0] if sizes else torch.float32
    for name in source.spec.scheme_of():
        like = torch.empty(source.tensor(f"{name}.weight_shape").tolist(), dtype=dtype, device="meta")
        state[f"{name}.weight"] = Deferred(like, partial(_weight, source, name, dtype))
    return state


def _weight(source: QuantizedFolder, name: str, dtype: torch.dtype) -> Tensor:
    return source.linear(name).dequantize(dtype).weight.detach().contiguous()


def original_names(model_class: str, names: list[str]) -> dict[str, str]:
    """diffusers' name → the name in the released files, where it is known; else the same name.

    Raises:
        ValueError: two tensors would get one name.
    """
    renamed = {}
    for name in names:
        new = name
        for pattern, replacement in ORIGINAL_NAMES.get(model_class, ()):
            new = re.sub(pattern, replacement, new)
        renamed[name] = new
    twice = [name for name, count in Counter(renamed.values()).items() if count > 1]
    if twice:
        raise ValueError(f"several tensors of this {model_class} would be named {', '.join(sorted(twice))}")
    return renamed


def write_dequantized(source: QuantizedFolder, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write an ordinary diffusers transformer folder, whole or not at all."""
    state = float_state(source, dtype)
    with replacing_folder(out) as unfinished:
        write_weights(state, unfinished)
        write_json(unfinished / "config.json", source.config)


def write_comfyui(source: QuantizedFolder, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file of float weights, with where it came from in the header."""
    state = float_state(source, dtype)
    model_class = source.config.get("_class_name", "")
    names = original_names(model_class, list(state))
    header = {
        "format": "pt",
        "model_class": model_class,
        "names": "original" if model_class in ORIGINAL_NAMES else "diffusers",
        "config": json.dumps(source.config, sort_keys=True),
        "s2q": json.dumps(
            {
                "recipe": source.spec.recipe,
                "bits": source.spec.bits,
                "producer": source.spec.producer,
                "weights": "float",
            }
        ),
    }
    with replacing(out) as temporary:
        save_file(
            {names[name]: tensor.contiguous() for name, tensor in made(state).items()}, temporary, metadata=header
        )
