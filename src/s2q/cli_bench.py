"""The command `s2q bench`."""

import os
import platform
import shlex
import sys
from typing import Annotated

import typer

from s2q.cli_open import chosen_device
from s2q.cli_options import BitsOption, DeviceOption, JsonOption
from s2q.cli_work import write_summary
from s2q.messages import console
from s2q.recipes import DEFAULT_BITS


def bench(
    bits: BitsOption = DEFAULT_BITS,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Whose widths; repeat it. Default: all that are known.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", help="M; repeat it. Default: 256, 1024.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed calls of each.", min=1)] = 7,
    threads: Annotated[int | None, typer.Option("--threads", help="Default: torch's own choice.", min=1)] = None,
    device: DeviceOption = None,
    ops: Annotated[bool, typer.Option("--ops", help="Only tell what computes each part here, and why.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Time the quantized linear against float32 and bfloat16 on this machine, interleaved in one process."""
    import torch

    from s2q.bench import SHAPES, backends, rows_of
    from s2q.recipe import Bits
    from s2q.runtime.native.library import instruction_set, why_not

    wanted = Bits.parse(bits)
    if wanted.act is None:
        raise ValueError(f"{bits} leaves activations in floating point: there is no integer product to time")
    unknown = sorted(set(model or ()) - SHAPES.keys())
    if unknown:
        raise ValueError(f"unknown model {', '.join(unknown)}: known are {', '.join(SHAPES)}")
    chosen = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    models, sizes = model or list(SHAPES), tokens or [256, 1024]
    if ops:
        for name in models:
            for columns, outputs in SHAPES[name]:
                for rows in sizes:
                    told = backends(columns, outputs, rows, wanted.weight, wanted.act, chosen)
                    for scheme, who in told.items():
                        line = f"{name} {columns} → {outputs}, M = {rows}, {scheme}: {who}"
                        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    rows = []
    for row in rows_of(models, sizes, wanted.weight, wanted.act, chosen, repeats):
        if not rows:
            heads = ["model", "K → N", "M", *row["ratios"], "of the peak", "in its input"]
            table = f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|"
            console.print(table, markup=False, highlight=False, soft_wrap=True)
        ratios = " | ".join(f"{ratio:.2f}×" for ratio in row["ratios"].values())
        shares = " | ".join(f"{row[share]['']:.0%}" for share in ("shares_of_peak", "shares_of_input"))
        line = f"| {row['model']} | {row['k']} → {row['n']} | {row['m']} | {ratios} | {shares} |"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        rows.append(row)
    made = {
        "command": f"{_demanded()}s2q {shlex.join(sys.argv[1:])}",
        "bits": bits,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(chosen) if chosen.startswith("cuda") else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": None if why_not(torch.device("cpu"), torch.bfloat16) else instruction_set(),
        "rows": rows,
    }
    write_summary(json_file, made)


def _demanded() -> str:
    """What of the environment chooses the code that is timed, as it is written before a command."""
    names = ("S2Q_BACKEND", "S2Q_INSTRUCTION_SET")
    return "".join(f"{name}={shlex.quote(os.environ[name])} " for name in names if os.environ.get(name))
