"""Take a transformer apart into its blocks: record how each is called, and call it again alone."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Recorded(NamedTuple):
    """How all blocks were called in one pass of the model."""

    first: States
    """What enters the first block."""
    sides: list[dict[str, Any]]
    """Of every block, in order; arguments that blocks share are the same objects."""
    restarts: dict[int, States]
    """Block → what enters it, where that is not what the block before passed on: the model did something in between."""


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
def record_calls(model: nn.Module, family: Family, arguments: Mapping[str, Any]) -> Recorded:
    """How every block is called in one pass of the model, see `Recorded`."""
    blocks = family.blocks(model)
    first: States = {}
    passed_on: States = {}
    left: list[int] = []
    restarts: dict[int, States] = {}
    sides: dict[int, dict[str, Any]] = {}

    def written(states: States) -> list[int]:
        # How often each was written to: a model may change in place what a block passed on. Inference tensors do not count.
        tensors = [value for value in states.values() if isinstance(value, Tensor)]
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]

    def receive(index: int, call: BlockCall) -> None:
        if index in sides:
            raise RuntimeError(f"{blocks[index][0]} is called more than once in a pass, which cannot be replayed")
        sides[index] = call.sides
        if index == 0:
            first.update(call.states)
        elif left != [index - 1, *written(passed_on)] or not _same_states(call.states, passed_on):
            restarts[index] = call.states

    def after(index: int, names: list[str]) -> Callable:
        def hook(block: nn.Module, args: tuple, output: Any) -> None:
            passed_on.clear()
            passed_on.update(zip(names, output if isinstance(output, tuple) else (output,), strict=False))
            left[:] = [index, *written(passed_on)]

        return hook

    handles = [
        block.register_forward_hook(after(index, states_of(block, family))) for index, (_, block) in enumerate(blocks)
    ]
    try:
        with _recording(blocks, family, receive):
            model(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for index, (name, _) in enumerate(blocks) if index not in sides]
    if missing:
        raise RuntimeError(f"these blocks were never called: {', '.join(missing)}")
    return Recorded(first, [sides[index] for index in range(len(blocks))], restarts)


def states_of(block: nn.Module, family: Family) -> list[str]:
    """Names of the states that a kind of block receives and passes on."""
    parameters = inspect.signature(block.forward).parameters
    return [name for name in family.states if name in parameters]


def _same_states(one: States, other: States) -> bool:
    return one.keys() == other.keys() and all(
        tensor is other[name] or (tensor.shape == other[name].shape and torch.equal(tensor, other[name]))
        for name, tensor in one.items()
    )


def replay(block: nn.Module, family: Family, states: States, sides: Mapping[str, Any]) -> States:
    """Call a block alone and return the states it passes on, with gradients if they are enabled."""
    # Bound as it was recorded, for blocks that take some arguments without naming them.
    call = inspect.BoundArguments(inspect.signature(block.forward), {**states, **sides})
    outputs = block(*call.args, **call.kwargs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip((name for name in family.states if name in states), outputs, strict=False))


def joined_tokens(family: Family, states: States) -> Tensor:
    """The states as one sequence in the order of self-attention: [B, S, channels].

    States of fewer channels (sound beside video) are filled up with zeros, which no error sees.
    """
    present = [states[name] for name in family.tokens if name in states]
    widest = max(state.shape[-1] for state in present)
    return torch.cat([nn.functional.pad(state, (0, widest - state.shape[-1])) for state in present], dim=1)


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
