"""What flows from block to block, for every sample: in memory, or on disk where the samples are too large for it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from s2q.models.blocks import States
from s2q.quantization.objective import BlockSample


class HiddenStates:
    """The states of N samples between two blocks.

    Args:
        folder: where to keep them; None is in memory. Nothing in it outlives the process, so that an interrupted run
            makes them again.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._kept: dict[int, States] = {}
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def _path(self, index: int) -> Path:
        return self._folder / f"sample-{index:04d}.safetensors"

    def __setitem__(self, index: int, states: States) -> None:
        if self._folder is None:
            self._kept[index] = states
        else:
            save_file({name: state.cpu().contiguous() for name, state in states.items()}, self._path(index))

    def __contains__(self, index: int) -> bool:
        return index in self._kept if self._folder is None else self._path(index).is_file()

    def __getitem__(self, index: int) -> States:
        return self._kept[index] if self._folder is None else load_file(self._path(index))


class Samples(Sequence):
    """The samples of a block, each made when it is asked for, so that one at a time is on the device."""

    def __init__(self, count: int, make: Callable[[int], BlockSample]):
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> BlockSample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._make(index)
