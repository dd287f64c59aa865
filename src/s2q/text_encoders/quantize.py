"""Quantize the text encoder of a pipeline into a folder that plain transformers loads."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import align_module_device
from torch import Tensor

from s2q.card import model_card
from s2q.checkpoint import PROVENANCE_NAME, QuantizationSpec, SchemeSpec, checksum
from s2q.deferred import held
from s2q.models.pipelines import locate, open_pipeline
from s2q.package import Storage, check_output, count_storage, write_folder
from s2q.progress import NoProgress, Progress
from s2q.quantization.schemes import scheme_spec
from s2q.recipe import Recipe
from s2q.recipes import RECIPES, get_recipe, override
from s2q.runtime.linear import QuantLinear
from s2q.shards import TEXT_PATTERN
from s2q.storage import file_digest, fingerprint, read_json
from s2q.text_encoders.calibration import record_tokens
from s2q.text_encoders.opening import PART, TextEncoder, open_text_encoder
from s2q.text_encoders.rounding import quantize_blocks
from s2q.version import VERSION

DEFAULTS = ("linear.group_size=64", "linear.act_group_size=null", "linear.symmetric_weights=false")
"""What text encoders change of a recipe; docs/text-encoders.md has the measurement."""
PROMPTS = 64
"""Most prompts of the bundled ones to calibrate on."""


@dataclass(frozen=True)
class QuantizedText:
    """The result of `quantize_text_encoder`."""

    folder: Path
    part: str
    storage: Storage


def text_recipe(name: str, bits: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe `name` at `bits` for text encoders, of which only `linear` is used.

    Args:
        changes: as `s2q.recipes.override` takes them, after `DEFAULTS`.

    Raises:
        ValueError: unknown name, bits or field, or a recipe that is more than rounding weights.
    """
    recipe = override(get_recipe(name, bits), [*DEFAULTS, *changes])
    if recipe.linear.act_bits is not None:
        raise ValueError(f"text encoders are quantized weight-only: write W4A16 or W8A16, not {recipe.bits}")
    if not _only_rounds(recipe):
        able = [other for other in RECIPES if _only_rounds(get_recipe(other, bits))]
        raise ValueError(f"{name} learns or transforms, which text encoders cannot be given: choose {', '.join(able)}")
    return recipe


def _only_rounds(recipe: Recipe) -> bool:
    scheme = recipe.linear
    return scheme.transform is None and scheme.low_rank is None and not scheme.learns


def quantize_text_encoder(
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    part: str = PART,
    prompts: Sequence[str] = (),
    device: str = "cpu",
    progress: Progress | None = None,
    **call: Any,
) -> QuantizedText:
    """Quantize one text encoder of the pipeline `source` into the folder `out`.

    The encoder stays on disk but for embeddings, the linear at work, and what is packed already.

    Args:
        recipe: as `text_recipe` gives it.
        part: "text_encoder", "text_encoder_2" …
        prompts: what GPTQ calibrates on; a recipe that looks at no inputs needs none.
        device: where the encoder runs.
        call: arguments of the pipeline's calls, which may change how prompts are encoded.

    Raises:
        PipelineError: no such pipeline or part.
        OutputError: `out` holds something else.
    """
    folder = locate(source, "transformer")
    looks = recipe.linear.sees_inputs
    if looks and not prompts:
        raise ValueError(f"the recipe {recipe.name} looks at inputs: give prompts")
    with tempfile.TemporaryDirectory() as scratch:
        encoder = open_text_encoder(folder, part, device, Path(scratch))
        settings = {
            "pipeline": source,
            "part": part,
            "weights": {path.name: file_digest(path) for path in sorted(encoder.folder.glob("model*.safetensors"))},
            "recipe": {"name": recipe.name, "bits": recipe.bits, "linear": recipe.linear.model_dump(mode="json")},
            "prompts": list(prompts) if looks else [],
            "device": device,
            "call": call,
        }
        if not check_output(out, fingerprint(settings)):
            tokens = None
            if looks:
                opened = open_pipeline(
                    source, part="transformer", dtype=encoder.model.dtype, device=device, stream=True,
                    text_encoders={part: encoder.model}, **call,
                )  # fmt: skip
                tokens = record_tokens(opened, encoder.model, prompts)
                del opened
            elements = sum(linear.weight.numel() for linear in map(encoder.model.get_submodule, encoder.linears()))
            quantize_blocks(encoder, recipe.linear, tokens, progress or NoProgress())
            _write(encoder, source, folder, recipe, out, settings, elements)
    return QuantizedText(out, part, Storage(**read_json(out / PROVENANCE_NAME)["storage"]))


def _write(
    encoder: TextEncoder, source: str, folder: Path, recipe: Recipe, out: Path, settings: dict[str, Any], elements: int
) -> None:
    kept, packed = _tensors(encoder)
    spec = QuantizationSpec(
        recipe=recipe.name, bits=recipe.bits, producer=f"s2q {VERSION}", schemes=(_scheme(recipe, packed),)
    )
    floats = held(kept)
    quantized = held({f"{name}.{key}": tensor for name, named in packed.items() for key, tensor in named.items()})
    storage = count_storage(elements * encoder.model.dtype.itemsize, elements, floats, quantized)
    model_class = type(encoder.model).__name__
    config = json.loads((encoder.folder / "config.json").read_text(encoding="utf-8"))
    pipeline = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    card = model_card(source, model_class, pipeline, spec, storage.to_dict(), part=encoder.part)
    told = {key: settings[key] for key in ("pipeline", "part", "recipe", "prompts", "device", "call")}
    told |= {"settings": fingerprint(settings), "storage": storage.to_dict()}
    config |= {"architectures": [model_class]}
    write_folder(out, config, spec, floats, quantized, card, told, transformers, TEXT_PATTERN)


def _scheme(recipe: Recipe, packed: dict[str, dict[str, Tensor]]) -> SchemeSpec:
    targets = {name: checksum(named) for name, named in packed.items()}
    columns = int(next(iter(packed.values()))["weight_shape"][1])
    return scheme_spec(recipe.linear, columns).model_copy(update={"targets": targets})


@torch.no_grad()
def _tensors(encoder: TextEncoder) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """All tensors that are not quantized by full name, and those of each packed linear."""
    kept: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, module in encoder.model.named_modules():
        if isinstance(module, QuantLinear):
            packed[name] = {key: tensor.detach().cpu() for key, tensor in module.packed_tensors().items()}
        own = set(getattr(module, "tensor_names", ())) | module._non_persistent_buffers_set
        with align_module_device(module):
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                full = f"{name}.{key}" if name else key
                if key not in own and full not in encoder.model.all_tied_weights_keys:
                    kept[full] = tensor.detach().cpu().clone()
    return kept, packed
