"""Inputs that no honest program wrote, for the readers of checkpoints."""

import json
import os
import struct
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

tries = settings(
    max_examples=int(os.environ.get("S2Q_FUZZ", "40")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
lengths = st.none() | st.sampled_from([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
junk = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "X99"]),
        "shape": st.lists(st.sampled_from([0, 1, 7, 2**31, 2**62, 2**64 - 1, -1]), max_size=5),
        "data_offsets": st.lists(st.sampled_from([0, 1, 4, 2**32, 2**63, 2**64 - 1, -4]), min_size=0, max_size=3),
    }
)


def headers(names: Sequence[str]) -> st.SearchStrategy[dict]:
    """Headers of safetensors files, made up of some of these names and of worse ones."""
    return st.dictionaries(st.sampled_from([*names, "__metadata__", "", "../x", "\x00"]), _entries, max_size=6)


def with_header(header: dict, length: int | None) -> bytes:
    """A safetensors file of this header and 64 bytes; `length` is what it says of its header, None the truth."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64


def header_end(data: bytes) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + struct.unpack("<Q", data[:8])[0]


def flipped(data: bytes, bits: Sequence[int]) -> bytes:
    """The same with these bits the other way round."""
    changed = bytearray(data)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
