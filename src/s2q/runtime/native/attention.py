"""Call the native int8 attention: tensors in, a tensor out, tiles of queries shared out over torch's number of threads."""

import ctypes
import importlib.util
import itertools
import math
from functools import cache

import torch
from torch import Tensor

from s2q.runtime.attention_reference import KEYS, Means
from s2q.runtime.native.library import why_not_there
from s2q.runtime.native.sharing import give_out

VERSION = 6
MODULE = "s2q.runtime.native._attention"
KINDS = {torch.float32: 0, torch.bfloat16: 1}
MASK_KINDS = {None: 0, torch.bool: 1, torch.float32: 2, torch.bfloat16: 3}
QUERIES = 32
"""Queries of a tile."""
SIDE = 16
"""Quads, or channels, that a tile of AMX takes at once."""
# Products below which a second thread costs more than it saves.
WORTH_A_THREAD = 1 << 21

_POINTERS = (
    *("query", "key", "value", "mask", "out", "key_mean", "value_mean"),
    *("key_codes", "key_start", "key_step", "key_poison", "value_codes", "value_step"),
)
_SIZES = ("heads", "queries", "keys", "width", "value_width", "blocks", "channels", "quads")
_STRIDES = {"query_stride": 3, "key_stride": 3, "value_stride": 3, "out_stride": 3, "mask_stride": 4}


class _Attention(ctypes.Structure):
    """`struct attention` of attention.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int64 * count) for name, count in _STRIDES.items()),
        ("dtype", ctypes.c_int64),
        ("mask_kind", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


@cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return "not built: there was no C compiler when s2q was installed"
    try:
        library = ctypes.CDLL(found.origin)
        library.s2q_attention_set.restype = ctypes.c_char_p
        for name in ("s2q_attention_pack", "s2q_attention_run"):
            getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        pointer, size, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        library.s2q_attention_shared.argtypes = (pointer, size, pointer, integer, integer, size, size)
        version = library.s2q_attention_version()
    except (OSError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    return library if version == VERSION else f"of version {version}, this s2q wants {VERSION}: install s2q again"


def why_not() -> str | None:
    """None if the native code is used, else the reason why not; S2Q_BACKEND decides as for the linears.

    Raises:
        RuntimeError: S2Q_BACKEND is native, and there is no native code.
    """
    return why_not_there(_load)


def instruction_sets() -> list[str]:
    """What the native code can use here, the best last; empty if it is not there."""
    library = _load()
    if isinstance(library, str):
        return []
    return [name.decode() for name in itertools.takewhile(bool, map(library.s2q_attention_set, itertools.count()))]


def int8_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    centre: Means,
    instruction_set: str | None = None,
) -> Tensor:
    """As `s2q.runtime.attention_reference.int8_attention`, the same bits; float32 or bfloat16 on the CPU.

    Args:
        instruction_set: one of `instruction_sets()`; None is the best.
    """
    query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    (batch, heads, queries, width), keys, value_width = query.shape, key.shape[2], value.shape[3]
    blocks, channels = -(-keys // KEYS), -(-value_width // SIDE) * SIDE
    parts = -(-width // (4 * SIDE))
    quads = -(-width // (4 * parts)) * parts
    rows = batch * heads
    # Tokens before heads in memory, as torch's own: models join the heads again without a copy.
    out = query.new_empty(batch, queries, heads, value_width).transpose(1, 2)
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
    kept = {
        "key_codes": torch.empty(rows, blocks * KEYS, quads * 4, dtype=torch.int8),
        "key_start": torch.empty(rows, blocks * KEYS, dtype=torch.int32),
        "key_step": torch.empty(rows, blocks),
        "key_poison": torch.empty(rows),
        "value_codes": torch.empty(rows, blocks * KEYS // 4, channels, 4, dtype=torch.int8),
        "value_step": torch.empty(rows, value_width),
        "key_mean": centre.key.contiguous(),
        "value_mean": centre.value.contiguous(),
    }
    given = {"query": query, "key": key, "value": value, "out": out, "mask": mask}
    attention = _Attention(
        heads=heads, queries=queries, keys=keys, width=width, value_width=value_width,
        blocks=blocks, quads=quads, channels=channels,
        dtype=KINDS[query.dtype], mask_kind=MASK_KINDS[None if mask is None else mask.dtype],
        scale=scale * math.log2(math.e),
    )  # fmt: skip
    for name, tensor in (given | kept).items():
        setattr(attention, name, None if tensor is None else tensor.data_ptr())
        if f"{name}_stride" in _STRIDES and tensor is not None:
            getattr(attention, f"{name}_stride")[:] = tensor.stride()[: _STRIDES[f"{name}_stride"]]
    library, sets = _load(), instruction_sets()
    chosen = sets.index(instruction_set or sets[-1])
    task = ctypes.addressof(attention)
    threads = min(torch.get_num_threads(), max(1, rows * queries * keys * width // WORTH_A_THREAD))
    steps = ((library.s2q_attention_pack, rows), (library.s2q_attention_run, rows * -(-queries // QUERIES)))
    for step, (function, count) in enumerate(steps):
        give_out(
            lambda start, stop, function=function: function(task, chosen, start, stop),
            lambda team, size, parts, step=step, count=count: library.s2q_attention_shared(
                team, size, task, chosen, step, count, parts
            ),
            count,
            threads,
        )
    return out
