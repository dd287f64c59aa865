"""Files that are either whole or absent: written beside their place, then moved there."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path):
    """Give a temporary path to write to; it takes the place of `path` if the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        _share(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path):
    """Give a temporary folder to fill; it becomes `folder`, absent or empty until then, if the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _share(path)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share(path: Path) -> None:
    """Give a file the rights that any new file has: safetensors makes its files for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def remove_unfinished(folder: Path) -> None:
    """Remove what `replacing` left under `folder` in a process that was killed while writing."""
    for path in folder.rglob(".*.part"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any | None:
    """The content of `path`, or None if it is absent or cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file atomically; `metadata` goes into its header as one JSON string."""
    with replacing(path) as temporary:
        save_file(
            {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"s2q": json.dumps(metadata or {}, ensure_ascii=False)},
        )


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The metadata that `write_tensors` wrote, or None if the file is absent or damaged: it then has to be made again."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["s2q"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None


def fingerprint(data: Any) -> str:
    """Sixteen hex digits that name a JSON-like value."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def derived_seed(*parts: int | str) -> int:
    """A seed that depends on all `parts`, so that items made in any order, or after a break, get the same numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
