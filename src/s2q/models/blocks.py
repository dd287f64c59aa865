"""Take a transformer apart into its blocks: record how each is called, and call it again alone."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2q.models.family import Family

States = dict[str, Tensor]


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one call of one block."""

    states: States
    """What flows from block to block, [B, S, channels] each."""
    sides: dict[str, Any]
    """Everything else (time embedding, rotary angles, masks), replayed as recorded."""


class _Stop(Exception):
    """Ends a forward whose rest is not needed."""


def _bind(block: nn.Module, args: tuple, kwargs: Mapping[str, Any], family: Family) -> BlockCall:
    arguments = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    return BlockCall(
        {name: arguments[name] for name in family.states if name in arguments},
        {name: value for name, value in arguments.items() if name not in family.states},
    )


@contextmanager
def _recording(
    blocks: list[tuple[str, nn.Module]], family: Family, receive: Callable[[int, BlockCall], None]
) -> Iterator[None]:
    def hook(index: int) -> Callable:
        return lambda block, args, kwargs: receive(index, _bind(block, args, kwargs, family))

    handles = [
        block.register_forward_pre_hook(hook(index), with_kwargs=True) for index, (_, block) in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def first_call(model: nn.Module, family: Family, arguments: Mapping[str, Any]) -> BlockCall:
    """How the first block is called when the model is called with `arguments`; the blocks do not run."""
    seen: list[BlockCall] = []

    def receive(index: int, call: BlockCall) -> None:
        seen.append(call)
        raise _Stop

    with _recording(family.blocks(model)[:1], family, receive):
        try:
            model(**arguments)
        except _Stop:
            return seen[0]
    raise RuntimeError(f"{type(model).__name__} ran without calling its first block")


@torch.no_grad()
def record_calls(model: nn.Module, family: Family, arguments: Mapping[str, Any]) -> tuple[States, list[dict[str, Any]]]:
    """States that enter the first block, and the side arguments of every block, in order, from one pass of the model.

    Side arguments that blocks share are the same objects here.
    """
    blocks = family.blocks(model)
    first: States = {}
    sides: dict[int, dict[str, Any]] = {}

    def receive(index: int, call: BlockCall) -> None:
        sides[index] = call.sides
        if index == 0:
            first.update(call.states)

    with _recording(blocks, family, receive):
        model(**arguments)
    missing = [name for index, (name, _) in enumerate(blocks) if index not in sides]
    if missing:
        raise RuntimeError(f"these blocks were never called: {', '.join(missing)}")
    return first, [sides[index] for index in range(len(blocks))]


def replay(block: nn.Module, family: Family, states: States, sides: Mapping[str, Any]) -> States:
    """Call a block alone and return the states it passes on, with gradients if they are enabled."""
    # Bound as it was recorded, for blocks that take some arguments without naming them.
    call = inspect.BoundArguments(inspect.signature(block.forward), {**states, **sides})
    outputs = block(*call.args, **call.kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip((name for name in family.states if name in states), outputs, strict=False))


def joined_tokens(family: Family, states: States) -> Tensor:
    """The states as one sequence in the order of self-attention: [B, S, channels]."""
    return torch.cat([states[name] for name in family.tokens if name in states], dim=1)


def modality_slices(family: Family, states: States) -> list[slice]:
    """Where the tokens of each state, text or video, stand in `joined_tokens`, in order."""
    slices, start = [], 0
    for name in family.tokens:
        if name in states:
            slices.append(slice(start, start + states[name].shape[1]))
            start += states[name].shape[1]
    return slices


def video_slice(family: Family, states: States) -> slice:
    """Where the video tokens stand in `joined_tokens`."""
    present = [name for name in family.tokens if name in states]
    return modality_slices(family, states)[present.index(family.states[0])]


def to_device(value: Any, device: torch.device | str) -> Any:
    """Move the tensors in nested dictionaries and tuples.

    Their dtypes are those of the pipeline and stay: it may feed a bfloat16 model with float32 times and rotary angles.
    """
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_device(item, device) for item in value)
    return value
