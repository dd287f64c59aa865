"""A transformer whose blocks stay on disk: each is read when it runs and dropped afterwards.

Everything outside the blocks (embeddings, norms, the last projection) is small and is loaded. The model runs as any
other and gives the same bits; only one block is in memory at a time, or those that `BlockStream.held` holds.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from s2q.models.family import Family
from s2q.models.lookup import resolve

# Share of the free memory that a transformer may take before its blocks are left on disk.
COMFORTABLE = 0.4


class StreamingError(ValueError):
    """Weights that cannot be read block by block."""


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise StreamingError(f"{path.name} is damaged or cut short: {error}") from None


class BlockStream:
    """Where the blocks' tensors stand on disk, and which blocks are in memory.

    Args:
        model: its blocks are on the meta device; hooks are added to them.
        files: safetensors files that together hold every tensor of `model`.
        dtype: what floating tensors are cast to, but for those that diffusers keeps in float32.
        device: where blocks run.
    """

    def __init__(self, model: nn.Module, family: Family, files: list[Path], dtype: torch.dtype, device: str):
        self._dtype, self._device = dtype, device
        self._float32 = set(model._keep_in_fp32_modules or ())
        self._file_of: dict[str, Path] = {}
        for path in files:
            with _opened(path) as file:
                self._file_of |= dict.fromkeys(file.keys(), path)
        missing = sorted(set(model.state_dict()) - self._file_of.keys())
        if missing:
            raise StreamingError(f"the files of the transformer lack {', '.join(missing[:8])}")
        self._holders: dict[nn.Module, int] = {}
        self._names = {block: name for name, block in family.blocks(model)}
        for block in self._names:
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after, always_call=True)

    @contextmanager
    def held(self, block: nn.Module) -> Iterator[None]:
        """Inside, the weights of `block` are in memory, read once however often it runs."""
        self._take(block)
        try:
            yield
        finally:
            self._drop(block)

    def load_rest(self, model: nn.Module) -> None:
        """Read everything outside the blocks."""
        blocks = tuple(f"{name}." for name in self._names.values())
        self._read(model, "", [name for name in model.state_dict() if not name.startswith(blocks)])

    def _read(self, module: nn.Module, prefix: str, names: Iterable[str]) -> None:
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[f"{prefix}{name}"], []).append(name)
        for path, own in by_file.items():
            with _opened(path) as file:
                for name in own:
                    self._set(module, name, self._cast(f"{prefix}{name}", file.get_tensor(f"{prefix}{name}")))

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        dtype = tensor.dtype
        if tensor.is_floating_point():
            dtype = torch.float32 if self._float32 & set(name.split(".")) else self._dtype
        # A copy: a tensor that stays a view of its file keeps all of that mapped, and resident as far as it was read.
        return tensor.to(self._device, dtype, copy=True)

    @staticmethod
    def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner)
        own = owner._parameters if leaf in owner._parameters else owner._buffers
        if own[leaf].shape != tensor.shape:
            raise StreamingError(f"{name} has shape {list(tensor.shape)} on disk, expected {list(own[leaf].shape)}")
        own[leaf] = nn.Parameter(tensor, requires_grad=False) if own is owner._parameters else tensor

    def _take(self, block: nn.Module) -> None:
        holders = self._holders.get(block, 0)
        if not holders:
            self._read(block, f"{self._names[block]}.", block.state_dict())
        self._holders[block] = holders + 1

    def _drop(self, block: nn.Module) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            for name, tensor in block.state_dict(keep_vars=True).items():
                self._set(block, name, torch.empty_like(tensor, device="meta"))

    # Copies of a block, made while it is calibrated, have its hooks; they own their weights.
    def _before(self, block: nn.Module, args: tuple) -> None:
        if block in self._names:
            self._take(block)

    def _after(self, block: nn.Module, args: tuple, output: Any) -> None:
        if block in self._names:
            self._drop(block)

    def __deepcopy__(self, memo: dict) -> "BlockStream":
        return self


def should_stream(files: list[Path], dtype: torch.dtype, free_bytes: int) -> bool:
    """Whether a transformer in `files`, cast to `dtype`, would take an uncomfortable share of `free_bytes`."""
    elements = 0
    for path in files:
        with _opened(path) as file:
            elements += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return elements * dtype.itemsize > COMFORTABLE * free_bytes


def open_streamed(folder: Path, files: list[Path], dtype: torch.dtype, device: str) -> tuple[nn.Module, BlockStream]:
    """The transformer in `folder` with its blocks left in `files`.

    Raises:
        StreamingError: a tensor that is missing or has another shape.
    """
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(diffusers, config["_class_name"])
    # Buffers that no file holds, such as rotary angles, are made by the constructor and stay as they are.
    with init_empty_weights(include_buffers=False):
        model = model_class.from_config(config)
    stream = BlockStream(model, resolve(model), files, dtype, device)
    stream.load_rest(model)
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if not buffer.is_meta:
            model.get_submodule(owner)._buffers[leaf] = buffer.to(device)
    model.register_to_config(_name_or_path=str(folder))
    return model.eval().requires_grad_(False), stream
