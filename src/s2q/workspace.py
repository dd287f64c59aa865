"""The folder of an unfinished run: what is done stands in it, item by item, and belongs to one set of settings."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from s2q.deferred import Deferred, stored
from s2q.quantization.block import CalibratedBlock
from s2q.storage import fingerprint, read_json, read_metadata, remove_unfinished, write_json, write_tensors

SETTINGS_NAME, SELECTION_NAME, SECONDS_NAME = "settings.json", "selection.json", "seconds.json"
TRAJECTORIES, TOKEN_WEIGHTS = "trajectories", "token_weights"
"""Folders of it."""


class WorkspaceError(ValueError):
    """A folder that cannot be used for this run."""


@dataclass(frozen=True)
class Workspace:
    """See the module's docstring."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any]) -> "Workspace":
        """Begin in an empty folder, or go on in one that the same settings began.

        Raises:
            WorkspaceError: the folder holds something else; it is left as it was.
        """
        path = folder / SETTINGS_NAME
        present = read_json(path)
        if present is None and folder.exists() and any(folder.iterdir()):
            leftovers = [entry.name for entry in folder.iterdir()]
            if any(not name.startswith(f".{SETTINGS_NAME}.") for name in leftovers):
                raise WorkspaceError(
                    f"{folder} holds something else ({', '.join(leftovers[:5])}): choose another folder"
                )
        if present is not None and fingerprint(present) != fingerprint(settings):
            differing = sorted(
                key for key in settings.keys() | present.keys() if not _equal(settings.get(key), present.get(key))
            )
            raise WorkspaceError(
                f"{folder} belongs to a run with other settings ({', '.join(differing)} differ): "
                "choose another output folder, or remove that one"
            )
        remove_unfinished(folder)
        if present is None:
            write_json(path, settings)
        return cls(folder)

    def block_path(self, index: int) -> Path:
        """File of block number `index`."""
        return self.folder / "blocks" / f"block-{index:04d}.safetensors"

    def write_block(self, index: int, name: str, groups: list[tuple[str, ...]], block: CalibratedBlock) -> None:
        """Keep a calibrated block."""
        tensors = {f"{linear}:{key}": t for linear, named in block.tensors.items() for key, t in named.items()}
        metadata = {
            "name": name,
            "groups": groups,
            "before": block.error_nearest,
            "after": block.error,
            "seconds": block.seconds,
        }
        write_tensors(self.block_path(index), tensors, metadata)

    def block_metadata(self, index: int) -> dict[str, Any] | None:
        """What `write_block` noted, or None if the block is not done."""
        return read_metadata(self.block_path(index))

    def read_block(self, index: int) -> dict[str, dict[str, Tensor]]:
        """Linear → its tensors of a block that is done."""
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load_file(self.block_path(index)).items():
            linear, _, key = name.partition(":")
            tensors.setdefault(linear, {})[key] = tensor
        return tensors

    def stored_block(self, index: int) -> dict[str, Deferred]:
        """The same by LINEAR.KEY, each tensor read when it is asked for."""
        return {name.replace(":", "."): tensor for name, tensor in stored(self.block_path(index)).items()}

    def remove(self) -> None:
        """Delete the folder, if it is there, when its result stands elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _equal(one: Any, other: Any) -> bool:
    return fingerprint(one) == fingerprint(other)
