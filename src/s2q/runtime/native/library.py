"""Call the native code: tensors in, tensors out, rows shared out over torch's number of threads."""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

VERSION = 1
MODULE = "s2q.runtime.native._rowwise"
KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Values below which a second thread costs more than it saves.
WORTH_A_THREAD = 1 << 18

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "s2q_quantize_rows": (
        (_POINTER, _INT, _SIZE, _SIZE, _SIZE, _POINTER, _FLOAT, _INT, _INT, _POINTER, _POINTER, _POINTER),
        _INT,
    ),
    "s2q_unpack_halves": ((_POINTER, _SIZE, _SIZE, _POINTER), None),
    "s2q_scale_sums": (
        (_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER),
        _INT,
    ),
    "s2q_version": ((), _INT),
    "s2q_instruction_set": ((), ctypes.c_char_p),
}


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
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
    return library


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the native code takes tensors of this kind, else the reason why not.

    The variable S2Q_BACKEND decides beforehand: `torch` and `triton` leave the native code out, `native` demands it.

    Raises:
        RuntimeError: it is demanded, and is not there.
        ValueError: another value of the variable.
    """
    wanted = os.environ.get("S2Q_BACKEND", "")
    if wanted not in ("", "native", "torch", "triton"):
        raise ValueError(f"S2Q_BACKEND is {wanted!r}: allowed are native, torch and triton, or nothing")
    if wanted in ("torch", "triton"):
        return f"S2Q_BACKEND is {wanted}"
    library = _load()
    if isinstance(library, str):
        if wanted:
            raise RuntimeError(f"S2Q_BACKEND is native, but the native code is {library}")
        return library
    if device.type != "cpu":
        return f"it runs on the CPU, not on {device.type}"
    return None if dtype in KINDS else f"it takes float32 and bfloat16, not {dtype}"


def instruction_set() -> str | None:
    """What the native code uses here; None if it is not there."""
    library = _load()
    return None if isinstance(library, str) else library.s2q_instruction_set().decode()


def quantize_rows(
    x: Tensor, channel: Tensor | None, clip: float, bits: int, symmetric: bool, groups: int, halves: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x · channel, [M, K] float32 or bfloat16, quantized: codes int8 [M, K], step sizes and zero points float32 [M, G].

    Args:
        channel: float32 [K], or None.
        halves: codes stand as (even columns, odd columns); wants G = 1 and an even K.
    """
    x = x.contiguous()
    rows, columns = x.shape
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scale = torch.empty(rows, groups)
    zero = None if symmetric else torch.empty(rows, groups)
    channel = None if channel is None else channel.contiguous()
    function = _load().s2q_quantize_rows

    def part(start: int, stop: int) -> int:
        own = [_at(tensor, start) for tensor in (codes, scale, zero)]
        sizes = (KINDS[x.dtype], stop - start, columns, groups)
        return function(_at(x, start), *sizes, _at(channel), clip, bits, halves, *own)

    _over_rows(part, rows, columns)
    return codes, scale, zero


def unpack_halves(packed: Tensor, out: Tensor) -> Tensor:
    """4-bit codes int32 [N, K/8] into `out`, int8 [N, K], as (even columns, odd columns)."""
    packed = packed.contiguous()
    function = _load().s2q_unpack_halves

    def part(start: int, stop: int) -> int:
        function(_at(packed, start), stop - start, out.shape[1], _at(out, start))
        return 0

    _over_rows(part, *out.shape)
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
    function = _load().s2q_scale_sums

    def part(start: int, stop: int) -> int:
        given = (_at(scale, start), _at(weight_scale), _at(zero, start), _at(weight_sum), _at(bias))
        return function(_at(sums, start), stop - start, columns, *given, KINDS[out.dtype], _at(out, start))

    _over_rows(part, rows, columns)


def _at(tensor: Tensor | None, row: int = 0) -> int | None:
    """Address of a row of a contiguous tensor."""
    return None if tensor is None else tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="s2q")


def _over_rows(part: Callable[[int, int], int], rows: int, columns: int) -> None:
    """Call `part` on ranges of rows that together are all of them; it returns 0, or 1 if there is no memory."""
    threads = min(torch.get_num_threads(), max(1, rows * columns // WORTH_A_THREAD), max(1, rows))
    bounds = [rows * index // threads for index in range(threads + 1)]
    done = map(part, bounds[:-1], bounds[1:]) if threads == 1 else _pool().map(part, bounds[:-1], bounds[1:])
    if any(list(done)):
        raise MemoryError("no memory for a row of the quantized input")
