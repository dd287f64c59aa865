"""Load the native code and call it: work shared out over threads, tensors by their addresses."""

import ctypes
import importlib.util
import os
import struct
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from s2q.runtime.native.sharing import give_out, share, share_out, team, worth

VERSION = 9
MODULE = "s2q.runtime.native._native"
KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Orders of the codes, rows of a tile, rows and columns of a square, and outputs of a panel, as in tasks.h and panel.h.
NATURAL, TILES, SHIFTED, SQUARES = range(4)
TILE, SHIFTED_TILE, SIDE, STEP, PANEL = 8, 6, 16, 64, 32
AMX = "AMX"
"""The instruction set whose product takes SQUARES."""

_POINTER, _SIZE, _INT, _TASK = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
_SIGNATURES = {
    "s2q_quantize": ((_TASK, _SIZE, _SIZE), _INT),
    "s2q_multiply": ((_TASK, _SIZE, _SIZE, _SIZE, _SIZE), _INT),
    "s2q_quantize_shared": ((_POINTER, _SIZE, _TASK, _SIZE, _SIZE), _INT),
    "s2q_multiply_shared": ((_POINTER, _SIZE, _TASK, _SIZE, _SIZE, _SIZE, _SIZE, _INT), _INT),
    "s2q_unpack_nibbles": ((_POINTER, _SIZE, _SIZE, _POINTER), None),
    "s2q_scale_sums": (
        (_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER),
        _INT,
    ),
    "s2q_peak": ((_SIZE, _POINTER), _SIZE),
    "s2q_peak_shared": ((_POINTER, _SIZE, _SIZE), _SIZE),
    "s2q_round_groups": ((_POINTER, _SIZE, _SIZE, _POINTER, _INT, _INT, _POINTER), None),
    "s2q_round_groups_back": (
        (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _INT, _INT, _POINTER, _POINTER),
        None,
    ),
    "s2q_mix_blocks": ((_POINTER, _SIZE, _SIZE, _POINTER), None),
    "s2q_column_dots": ((_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER), None),
    "s2q_kronecker": ((_POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER), _INT),
    "s2q_kronecker_back": ((_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, *[_POINTER] * 5), _INT),
    "s2q_version": ((), _INT),
    "s2q_instruction_set": ((), ctypes.c_char_p),
    "s2q_set_name": ((_INT,), ctypes.c_char_p),
    "s2q_use": ((ctypes.c_char_p,), _INT),
}
# Fields of tasks.h, all of 64 bits: first what the problem says, then what the tensors say.
TEN, ELEVEN = (struct.Struct(f"={count}q") for count in (10, 11))


@cache
def load() -> ctypes.CDLL | str:
    """The library, or why there is none, if S2Q_BACKEND does not say otherwise: see `why_not`.

    Raises:
        ValueError: S2Q_INSTRUCTION_SET names a set that this machine does not have.
    """
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return "not built: there was no C compiler when s2q was installed"
    try:
        library = ctypes.CDLL(found.origin)
        for name, (arguments, result) in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except (OSError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    if library.s2q_version() != VERSION:
        return f"of version {library.s2q_version()}, this s2q wants {VERSION}: install s2q again"
    wanted = os.environ.get("S2Q_INSTRUCTION_SET")
    if wanted and library.s2q_use(wanted.encode()):
        raise ValueError(f"S2Q_INSTRUCTION_SET is {wanted!r}: this machine has {', '.join(_sets(library))}")
    return library


def why_not_there(load: Callable[[], ctypes.CDLL | str]) -> str | None:
    """None if the library that `load` gives is to be used, else the reason why not.

    The variable S2Q_BACKEND decides beforehand: `torch` and `triton` leave the native code out, `native` demands it.

    Raises:
        RuntimeError: it is demanded, and is not there.
    """
    wanted = os.environ.get("S2Q_BACKEND", "")
    if wanted in ("torch", "triton"):
        return f"S2Q_BACKEND is {wanted}"
    library = load()
    if isinstance(library, str) and wanted == "native":
        raise RuntimeError(f"S2Q_BACKEND is native, but the native code is {library}")
    return library if isinstance(library, str) else None


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the native code takes tensors of this kind, else the reason why not.

    Raises:
        RuntimeError: see `why_not_there`.
    """
    missing = why_not_there(load)
    if missing is not None:
        return missing
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    return None if dtype in KINDS else f"it takes float32 and bfloat16, not {dtype}"


def instruction_set() -> str | None:
    """What the native code uses here; None if it is not there. S2Q_INSTRUCTION_SET names another one of `instruction_sets`."""
    library = load()
    return None if isinstance(library, str) else library.s2q_instruction_set().decode()


def instruction_sets() -> list[str]:
    """What the native code could use on this machine, the plainest first; empty if it is not there."""
    library = load()
    return [] if isinstance(library, str) else _sets(library)


def _sets(library: ctypes.CDLL) -> list[str]:
    names = map(library.s2q_set_name, range(len(_SIGNATURES)))
    return [name.decode() for name in names if name is not None]


@cache
def takes_squares() -> bool:
    """Whether the product that is used here takes SQUARES."""
    return instruction_set() == AMX


def use(name: str | None) -> None:
    """Take another one of `instruction_sets` from now on; None is the best."""
    if load().s2q_use(None if name is None else name.encode()):
        raise ValueError(f"there is no instruction set {name!r} here: there are {', '.join(instruction_sets())}")
    takes_squares.cache_clear()


def address(tensor: Tensor | None) -> int:
    """Address of a contiguous tensor's values; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def _row(tensor: Tensor, index: int) -> int:
    return tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()


def tile_start(rows: int, tiles: int, index: int) -> int:
    """The first row of a tile: rows are shared out evenly, as in lanes.h."""
    return index * (rows // tiles) + min(index, rows % tiles)


def quantize(task: bytes, tiles: int, work: int) -> None:
    """Call `s2q_quantize` with a `quantize_task` of tasks.h.

    Args:
        tiles: tiles of the rows.
        work: operations of the whole, to judge how many threads are worth it.
    """
    native = load()
    give_out(
        lambda start, stop: native.s2q_quantize(task, start, stop),
        lambda own, size, parts: native.s2q_quantize_shared(own, size, task, tiles, parts),
        tiles,
        worth(work),
    )


def multiply(task: bytes, first: int, last: int, panels: int, work: int) -> None:
    """Call `s2q_multiply` with a `multiply_task` of tasks.h, for tiles `first` to `last` and all panels.

    Threads take panels each, or tiles where panels are few.
    """
    native, by_panels = load(), panels >= 4 * torch.get_num_threads()

    def part(start: int, stop: int) -> int:
        if by_panels:
            return native.s2q_multiply(task, start, stop, first, last)
        return native.s2q_multiply(task, 0, panels, first + start, first + stop)

    give_out(
        part,
        lambda own, size, parts: native.s2q_multiply_shared(own, size, task, first, last, panels, parts, by_panels),
        panels if by_panels else last - first,
        worth(work),
    )


def unpack_nibbles(packed: Tensor, out: Tensor) -> Tensor:
    """4-bit codes int32 [N, K/8] into `out`, int8 [N, K]."""
    packed = packed.contiguous()
    function = load().s2q_unpack_nibbles

    def part(start: int, stop: int) -> None:
        function(_row(packed, start), stop - start, out.shape[1], _row(out, start))

    share(part, out.shape[0], out.numel())
    return out


def scale_sums(
    sums: Tensor,
    scale: Tensor,
    weight_scale: Tensor,
    zero: Tensor | None,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """((sums − zero · weight_sum) · scale) · weight_scale + bias into `out`.

    Args:
        sums: int32 [M, N].
        scale: float32 [M, 1].
        weight_scale: float32 [N, 1].
        zero, weight_sum: int32 [M, 1] and int32 [N], both or neither.
        bias: float32 [N] or None.
        out: float32 or bfloat16 [M, N], contiguous.
    """
    rows, columns = sums.shape
    scale, weight_scale = scale.contiguous(), weight_scale.contiguous()
    function = load().s2q_scale_sums

    def part(start: int, stop: int) -> int:
        own = None if zero is None else _row(zero, start)
        given = (_row(scale, start), address(weight_scale), own, address(weight_sum), address(bias))
        return function(_row(sums, start), stop - start, columns, *given, KINDS[out.dtype], _row(out, start))

    share(part, rows, sums.numel())


def peak(rounds: int, threads: int) -> int:
    """Integer products out of registers, the most this machine can make; returns how many operations they were.

    Args:
        rounds: of each thread.
    """
    shared = team() if threads > 1 else None
    if shared:
        return load().s2q_peak_shared(shared, threads, rounds)
    function = load().s2q_peak
    done: list[int] = []

    def part(*_: int) -> int:
        done.append(function(rounds, ctypes.byref(ctypes.c_int32())))
        return 0

    share_out(part, threads, threads)
    return sum(done)
