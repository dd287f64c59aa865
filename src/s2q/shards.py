"""The safetensors files of a checkpoint: which they may be, which tensor stands where, and what its floats should be."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2q.checkpoint import PROVENANCE_NAME, CheckpointError, checksum

INDEX_NAME = "diffusion_pytorch_model.safetensors.index.json"
SINGLE_NAME = "diffusion_pytorch_model.safetensors"


def weight_places(folder: Path) -> dict[str, Path]:
    """Name of each tensor in a transformer folder → the file that holds it.

    Raises:
        CheckpointError: no weights, an index that lies or leads out of the folder, a file that is missing or damaged.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        if not (folder / SINGLE_NAME).is_file():
            raise CheckpointError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}")
        return tensor_places([folder / SINGLE_NAME])
    try:
        promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(promised.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from None
    outside = [str(shard) for shard in shards if not _is_file_name(shard)]
    if outside:
        raise CheckpointError(f"{index} leads out of its folder, to {', '.join(outside)}: do not trust this checkpoint")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}: download or copy it again")
    places = tensor_places([folder / shard for shard in shards])
    wrong = sorted({name for name, shard in promised.items() if places.get(name, Path()).name != shard})
    wrong += sorted(set(places) - set(promised))
    if wrong:
        raise CheckpointError(f"{index} and the files do not agree on {', '.join(wrong[:8])}")
    return places


def tensor_places(files: Sequence[Path]) -> dict[str, Path]:
    """Name of each tensor in `files` → its file; only headers are read.

    Raises:
        CheckpointError: a file that is damaged or no safetensors, or a tensor that stands in two files.
    """
    places: dict[str, Path] = {}
    for path in files:
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} is no safetensors file: s2q reads no other (pickle could run code)")
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        twice = sorted(set(names) & set(places))
        if twice:
            raise CheckpointError(f"{path.name} and {places[twice[0]].name} both hold {', '.join(twice[:8])}")
        places |= dict.fromkeys(names, path)
    return places


def check_loaded_files(files: Sequence[Path]) -> None:
    """What diffusers is about to load, or has: files of one folder, each tensor once.

    Raises:
        CheckpointError: a shard outside the folder of its index, or what `tensor_places` raises.
    """
    folders = {path.parent for path in files}
    away = [path for path in files if "-of-" in path.name and not any(path.parent.glob("*.safetensors.index.json"))]
    if len(folders) > 1 or away:
        said = ", ".join(sorted(str(path) for path in away or files)[:8])
        raise CheckpointError(f"the index of shards leads out of its folder, to {said}: do not trust this checkpoint")
    tensor_places(files)


def stored_checksums(folder: Path) -> dict[str, str]:
    """Name of each float tensor → its checksum, as `s2q quantize` noted them beside the weights; empty without a note.

    Raises:
        CheckpointError: a note that cannot be read.
    """
    path = folder / PROVENANCE_NAME
    if not path.is_file():
        return {}
    try:
        noted: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    checksums = noted.get("float_checksums", {}) if isinstance(noted, dict) else None
    if not isinstance(checksums, dict):
        raise CheckpointError(f"{path} has no table of float_checksums: the file is damaged")
    return checksums


def float_checksum(name: str, tensor: Tensor) -> str:
    """CRC-32 of one tensor that is not quantized."""
    return checksum({name: tensor})


def damaged_floats(tensors: Mapping[str, Tensor], expected: Mapping[str, str]) -> list[str]:
    """Names of the tensors that are not what was noted."""
    return [n for n, tensor in tensors.items() if n in expected and float_checksum(n, tensor) != expected[n]]


def _is_file_name(shard: Any) -> bool:
    return isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & {"/", "\\", "\0", ":"}
