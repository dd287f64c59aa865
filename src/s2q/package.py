"""Put the quantized blocks and the untouched rest together: an ordinary diffusers transformer folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch

from s2q.card import CARD_NAME, model_card
from s2q.checkpoint import PROVENANCE_NAME, QUANT_METHOD, QuantizationSpec, SchemeSpec, checksum
from s2q.deferred import Deferred, held, stored
from s2q.models.pipelines import OpenPipeline, weight_files
from s2q.quantization.schemes import merged, scheme_for, scheme_spec
from s2q.recipe import Recipe
from s2q.shards import PATTERN, float_checksum, write_weights
from s2q.storage import fingerprint, read_json, replacing_folder, write_json
from s2q.version import VERSION
from s2q.workspace import Workspace


class OutputError(ValueError):
    """An output folder that holds something else."""


@dataclass(frozen=True)
class Storage:
    """Bytes of the model's tensors on disk, before and after."""

    float_bytes: int
    quantized_bytes: int
    bits_per_block_weight: float
    """Of the packed codes alone; scales and transforms are counted under `parts`."""
    parts: dict[str, tuple[int, int]]
    """Part → bytes before, after."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the report."""
        return asdict(self)


def check_output(out: Path, settings_id: str) -> bool:
    """Whether `out` already holds the result of these settings.

    Raises:
        OutputError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    present = read_json(out / PROVENANCE_NAME) if out.is_dir() else None
    if present is not None and present.get("settings") == settings_id:
        return True
    what = "the result of another s2q run" if present is not None else "something else"
    raise OutputError(f"{out} exists and holds {what}: choose another output, or remove it")


def write_transformer(
    opened: OpenPipeline, recipe: Recipe, workspace: Workspace, out: Path, provenance: dict[str, Any]
) -> Storage:
    """Write the folder `out` whole or not at all, and count its bytes.

    The float tensors that are kept are copied from the pipeline's own files, so they stay bit for bit what they were; or
    from memory, if the pipeline was loaded by someone else.
    """
    config = _config(opened)
    quantized, spec = collect(opened, recipe, workspace)
    kept, storage = storage_of(opened, quantized, spec)
    source = None if opened.folder is None else opened.source
    pipeline_class = type(opened.pipe).__name__
    card = model_card(source, config["_class_name"], pipeline_class, spec, storage.to_dict(), part=opened.part)
    noted = provenance | {"storage": storage.to_dict(), "pipeline_class": pipeline_class}
    write_folder(out, config, spec, kept, quantized, card, noted, diffusers)
    return storage


def write_folder(
    out: Path,
    config: dict[str, Any],
    spec: QuantizationSpec,
    kept: Mapping[str, Deferred],
    quantized: Mapping[str, Deferred],
    card: str,
    provenance: dict[str, Any],
    library: ModuleType,
    pattern: str = PATTERN,
) -> None:
    """Write the folder `out` of a quantized model whole or not at all: weights, configuration, provenance and card.

    One shard of the weights is in memory at a time.

    Args:
        config: of the float model.
        kept: the tensors that are not quantized; their checksums are noted.
        library: what loads the folder.
        pattern: name of its weight files.
    """
    config = config | {"quantization_config": {"quant_method": QUANT_METHOD, **spec.model_dump(mode="json")}}
    config.pop("_name_or_path", None)
    noted = {"config_fingerprint": fingerprint(config)}
    noted |= {"float_checksums": {name: float_checksum(name, kept[name].make()) for name in sorted(kept)}}
    noted |= {"versions": {"s2q": VERSION, "torch": torch.__version__, library.__name__: library.__version__}}
    with replacing_folder(out) as unfinished:
        write_weights({**kept, **quantized}, unfinished, pattern)
        write_json(unfinished / "config.json", config)
        write_json(unfinished / PROVENANCE_NAME, provenance | noted)
        (unfinished / CARD_NAME).write_text(card, encoding="utf-8")


def storage_of(
    opened: OpenPipeline, quantized: Mapping[str, Deferred], spec: QuantizationSpec
) -> tuple[dict[str, Deferred], Storage]:
    """The float tensors that stay, by full name, and the bytes of all."""
    weights = {f"{name}.weight" for name in spec.scheme_of()}
    kept, replaced_bytes, elements = {}, 0, 0
    for name, tensor in _source_tensors(opened):
        if name in weights:
            replaced_bytes += tensor.like.nbytes
            elements += tensor.like.numel()
        else:
            kept[name] = tensor
    return kept, count_storage(replaced_bytes, elements, kept, quantized)


def _config(opened: OpenPipeline) -> dict[str, Any]:
    if opened.folder is None:
        return json.loads(opened.transformer.to_json_string())
    return json.loads((opened.folder / opened.part / "config.json").read_text())


def _source_tensors(opened: OpenPipeline) -> Iterator[tuple[str, Deferred]]:
    if opened.folder is None:
        yield from held(opened.transformer.state_dict()).items()
        return
    for path in weight_files(opened.folder / opened.part):
        yield from stored(path).items()


def collect(opened: OpenPipeline, recipe: Recipe, workspace: Workspace) -> tuple[dict[str, Deferred], QuantizationSpec]:
    """All quantized tensors by full name, and the configuration that describes them; they stay in the work folder."""
    tensors: dict[str, Deferred] = {}
    shared: list[tuple[str, ...]] = []
    linears: list[tuple[str, SchemeSpec, str]] = []
    for index, (block_name, _) in enumerate(opened.family.blocks(opened.transformer)):
        groups = workspace.block_metadata(index)["groups"]
        shared += [tuple(f"{block_name}.{name}" for name in group) for group in groups if len(group) > 1]
        tensors |= {f"{block_name}.{name}": tensor for name, tensor in workspace.stored_block(index).items()}
        for name, named in workspace.read_block(index).items():
            full = f"{block_name}.{name}"
            shape = named["weight_shape"].tolist()
            described = scheme_spec(scheme_for(recipe, opened.family, name, shape), shape[1])
            linears.append((full, described, checksum(named)))
    spec = QuantizationSpec(
        recipe=recipe.name,
        bits=recipe.bits,
        producer=f"s2q {VERSION}",
        schemes=merged(linears),
        shared_inputs=tuple(shared),
    )
    return tensors, spec


def count_storage(
    replaced_bytes: int, elements: int, kept: Mapping[str, Deferred], quantized: Mapping[str, Deferred]
) -> Storage:
    """Count bytes before and after, given the bytes and the number of the float weights that were replaced."""

    def after(*endings: str) -> int:
        return sum(tensor.like.nbytes for name, tensor in quantized.items() if name.endswith(endings))

    packed, other = after(".weight_packed"), sum(tensor.like.nbytes for tensor in kept.values())
    parts = {
        "block weights": (replaced_bytes, packed),
        "scales": (0, after(".weight_scale", ".weight_zero_point", ".weight_shape")),
        "transforms": (0, after(".input_scale", ".input_left", ".input_right", ".input_clip", ".input_range")),
        "low-rank branches": (0, after(".low_rank_down", ".low_rank_up")),
        "other": (other, other),
    }
    return Storage(replaced_bytes + other, after("") + other, 8 * packed / elements, parts)
