"""The command `s2q export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_options import JsonOption
from s2q.cli_work import write_summary
from s2q.messages import console, size


class Format(str, Enum):
    """What can be written."""

    compressed_tensors = "compressed-tensors"
    dequantized = "dequantized"
    comfyui = "comfyui"


def export(
    folder: Annotated[Path, typer.Argument(metavar="TRANSFORMER", help="A folder that s2q quantize wrote.")],
    to: Annotated[Format, typer.Option("--to", help="What to write; see docs/export.md.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="A folder; for comfyui a .safetensors file.")],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of dequantized weights: float32, bfloat16, float16. Default: the checkpoint's."),
    ] = None,
    act_bits: Annotated[
        int | None,
        typer.Option("--act-bits", help="compressed-tensors only: write these bits for activations.", min=4, max=8),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Write a quantized transformer for programs that do not know s2q."""
    import torch

    from s2q.export.compressed_tensors import quantization_config, write_compressed_tensors
    from s2q.export.float_weights import write_comfyui, write_dequantized
    from s2q.export.source import open_folder

    packed = to is Format.compressed_tensors
    if dtype is not None and packed:
        raise ValueError("--dtype is for dequantized weights: compressed-tensors keeps the packed ones")
    if act_bits is not None and not packed:
        raise ValueError(f"--act-bits is for --to compressed-tensors: {to.value} has activations in floating point")
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"unknown dtype {dtype!r}: allowed are float32, bfloat16, float16")
    if to is Format.comfyui and out.suffix != ".safetensors":
        raise ValueError(f"the output must end in .safetensors, got {out}")
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or to is Format.comfyui):
        raise ValueError(f"{out} exists: choose another output, or remove it")
    source = open_folder(folder)
    kind = None if dtype is None else getattr(torch, dtype)
    if packed:
        write_compressed_tensors(source, out, act_bits)
        groups = quantization_config(source, act_bits)["config_groups"]
        details = {"config_groups": len(groups), "linears": sum(len(group["targets"]) for group in groups.values())}
    else:
        (write_dequantized if to is Format.dequantized else write_comfyui)(source, out, kind)
        details = {"linears": len(source.spec.scheme_of())}
    count = sum(p.stat().st_size for p in ([out] if out.is_file() else out.iterdir()))
    said = f"{details['linears']} linears of {source.spec.recipe} {source.spec.bits} written to {out}, {size(count)}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    summary = {"transformer": str(folder), "to": to.value, "output": str(out), "bytes": count, **details}
    write_summary(json_file, summary)
