"""How many bytes a stored weight takes, by the files, or by the configurations alone."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
ASSUMED = 2
"""Of bfloat16, where nothing tells."""


def stored_bytes(folder: Path, stem: str, parameters: int) -> int | None:
    """Bytes of a weight of the model in `folder`; None if nothing there tells.

    Asked are the first floating tensor of its files; without them the size that an index of shards tells, and the dtype that
    a configuration does.

    Args:
        stem: what its files are called, `diffusion_pytorch_model` or `model`.
        parameters: how many weights it has.
    """
    index = folder / f"{stem}.safetensors.index.json"
    told = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    names = sorted(set(told["weight_map"].values())) if told else [f"{stem}.safetensors"]
    for path in (folder / name for name in names if (folder / name).is_file()):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                if (kind := file.get_slice(name).get_dtype()) in FLOAT_BYTES:
                    return FLOAT_BYTES[kind]
    if size := told.get("metadata", {}).get("total_size"):
        return min((2, 4, 8), key=lambda count: abs(count - size / parameters))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else None
