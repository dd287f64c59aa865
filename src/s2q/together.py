"""What is said of two quantized transformers that share the steps of a pipeline: both recipes, and the storage of both."""

from collections.abc import Mapping, Sequence
from typing import Any


def named(provenances: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Recipe and bits as they are shown; where two differ, the first and then the second."""
    return {"recipe": _both(provenances, "name"), "bits": _both(provenances, "bits")}


def stored(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The storage of all together; None if one of them does not tell its own."""
    each = [provenance.get("storage") for provenance in provenances]
    if not all(each):
        return None
    parts = {
        name: [sum(sizes) for sizes in zip(*(one["parts"][name] for one in each), strict=True)]
        for name in each[0]["parts"]
    }
    blocks = [one["parts"]["block weights"][0] for one in each]
    bits = [one["bits_per_block_weight"] for one in each]
    return {
        "float_bytes": sum(one["float_bytes"] for one in each),
        "quantized_bytes": sum(one["quantized_bytes"] for one in each),
        "bits_per_block_weight": sum(b * n for b, n in zip(bits, blocks, strict=True)) / sum(blocks),
        "parts": parts,
    }


def _both(provenances: Sequence[Mapping[str, Any]], field: str) -> str:
    said = dict.fromkeys(provenance.get("recipe", {}).get(field, "unknown") for provenance in provenances)
    return " and ".join(said)
