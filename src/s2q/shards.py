"""The safetensors files of a checkpoint: which they may be, which tensor stands where, and what was noted of them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s2q.checkpoint import PROVENANCE_NAME, CheckpointError, checksum
from s2q.deferred import Deferred
from s2q.storage import fingerprint, write_json

INDEX_NAME = "diffusion_pytorch_model.safetensors.index.json"
SINGLE_NAME = "diffusion_pytorch_model.safetensors"
# diffusers' name; a lone file has no suffix, shards are numbered.
PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
TEXT_PATTERN = "model{suffix}.safetensors"
TEXT_INDEX_NAME, TEXT_SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
"""The same of transformers."""
MAX_SHARD_SIZE = "2GB"
"""What is in memory at once when a model is written."""


def weight_places(folder: Path, single: str = SINGLE_NAME, index_name: str = INDEX_NAME) -> dict[str, Path]:
    """Name of each tensor in the folder of a model → the file that holds it.

    Args:
        single: name of a lone file.
        index_name: name of the index of several; where both are there it is the index that counts, as in diffusers.

    Raises:
        CheckpointError: no weights, an index that lies or leads out of the folder, a file that is missing or damaged.
    """
    index = folder / index_name
    if not index.is_file():
        if not (folder / single).is_file():
            raise CheckpointError(f"{folder} has neither {single} nor {index_name}")
        return tensor_places([folder / single])
    try:
        promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(promised.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}") from None
    if not shards:
        raise CheckpointError(f"{index} names no file")
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


def check_together(files: Sequence[Path], source: Path) -> None:
    """Whether the files that a library wants to read stand in one folder, beside the index that names them.

    Args:
        source: what the library was asked to load: a folder, or something else that it finds by itself.

    Raises:
        CheckpointError: an index leads out of its folder.
    """
    folder, *others = {Path(os.path.abspath(file)).parent for file in files}
    away = bool(others) or (source.is_dir() and not folder.is_relative_to(os.path.abspath(source)))
    named = [set(_named(index)) for index in folder.glob("*.safetensors.index*.json")]
    if away or (len(files) > 1 and {file.name for file in files} not in named):
        raise CheckpointError(
            f"an index of shards in {source} leads out of its folder, to {', '.join(map(str, files))}: do not trust this "
            "checkpoint"
        )


def _named(index: Path) -> Iterable[str]:
    try:
        return [str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


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


def write_weights(
    tensors: Mapping[str, Deferred], folder: Path, pattern: str = PATTERN, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Write the tensors of a model into `folder` as diffusers and transformers do: one file, or shards and their index.

    Each is asked for when its shard is written, and let go with it.
    """
    likes = {name: tensor.like for name, tensor in tensors.items()}
    plan = split_torch_state_dict_into_shards(likes, filename_pattern=pattern, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        save_file(_apart({name: tensors[name].make() for name in names}), folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{pattern.format(suffix='')}.index.json", index)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and tied ones each with memory of its own: a file knows no ties."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().to("cpu").contiguous()
        found[name] = own.clone() if own.data_ptr() in taken else own
        taken.add(own.data_ptr())
    return found


@dataclass(frozen=True)
class Notes:
    """What `s2q quantize` noted beside the weights, to see damage that no other check sees; empty without a note."""

    folder: Path | None = None
    float_checksums: Mapping[str, str] = field(default_factory=dict)
    """Name of each tensor that is not quantized → `float_checksum`."""
    config_fingerprint: str | None = None
    """`s2q.storage.fingerprint` of what `config.json` says."""

    def damaged_floats(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors that are not what was noted."""
        noted = self.float_checksums
        return [name for name, t in tensors.items() if name in noted and float_checksum(name, t) != noted[name]]

    def config_differs(self) -> bool:
        """Whether `config.json` says something else than was noted."""
        if self.folder is None or self.config_fingerprint is None:
            return False
        return fingerprint(json.loads((self.folder / "config.json").read_text("utf-8"))) != self.config_fingerprint


def read_notes(folder: Path) -> Notes:
    """The notes in the provenance of a transformer folder.

    Raises:
        CheckpointError: they cannot be read.
    """
    path = folder / PROVENANCE_NAME
    if not path.is_file():
        return Notes()
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        checksums, config = data.get("float_checksums", {}), data.get("config_fingerprint")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(checksums, dict) or not isinstance(config, str | None):
        raise CheckpointError(f"{path} has no table of float_checksums: the file is damaged")
    return Notes(folder, checksums, config)


def float_checksum(name: str, tensor: Tensor) -> str:
    """CRC-32 of one tensor that is not quantized."""
    return checksum({name: tensor})


def _is_file_name(shard: Any) -> bool:
    return isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & {"/", "\\", "\0", ":"}
