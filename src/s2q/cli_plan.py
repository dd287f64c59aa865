"""The command `s2q plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2q.cli_open import chosen_device, chosen_dtype
from s2q.cli_options import (
    BitsOption,
    DeviceOption,
    DtypeOption,
    FramesOption,
    HeightOption,
    JsonOption,
    Overrides,
    PartOption,
    RecipeOption,
    Source,
    StepsOption,
    WidthOption,
    call_of,
)
from s2q.cli_text import planned_text
from s2q.cli_work import chosen_recipe, write_summary
from s2q.messages import console, duration, size, table
from s2q.recipes import DEFAULT, DEFAULT_BITS

if TYPE_CHECKING:
    import torch

    from s2q.planning import Plan
    from s2q.recipe import Recipe


def plan(
    pipeline: Source,
    bits: BitsOption = DEFAULT_BITS,
    recipe: RecipeOption = DEFAULT,
    set_: Overrides = None,
    steps: StepsOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    part: PartOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every linear.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Tell what would be quantized, the size before and after, the memory and the time; loads no weights.

    Of a hub id only configurations are fetched, and a folder of configurations is enough. Both transformers are planned
    where a pipeline has two and no --part is named.
    """
    from s2q.models.folder import check_part
    from s2q.models.pipelines import default_call, locate_configurations

    folder, there = locate_configurations(pipeline)
    parts = there if part is None else [check_part(pipeline, there, part)]
    chosen = chosen_recipe(recipe, bits, set_)
    call = {name: value for name, value in call_of(steps, None, height, width, num_frames).items() if value is not None}
    call = default_call(pipeline, folder) | call
    kind = chosen_device(device)
    text_rows, text = planned_text(folder)
    planned = {}
    for name in parts:
        title = pipeline if len(there) == 1 else f"{pipeline}, {name}"
        planned[name] = _plan_part(
            title, folder, name, chosen, call, kind, chosen_dtype(dtype, kind), text_rows, layers
        )
    write_summary(json_file, (planned[parts[0]] if len(parts) == 1 else {"parts": planned}) | text)


def _plan_part(
    title: str,
    folder: Path,
    part: str,
    recipe: Recipe,
    call: dict[str, Any],
    device: str,
    dtype: torch.dtype,
    text_rows: dict[str, str],
    layers: bool,
) -> dict[str, Any]:
    """Plan one transformer and print it; gives what goes into JSON."""
    from s2q.advice import advise
    from s2q.companions import companion_bytes
    from s2q.fitting import free_memory
    from s2q.planning import plan as make_plan

    made = make_plan(folder, recipe, call, device, dtype, part=part)
    beside = companion_bytes(folder, part, dtype) if recipe.needs_samples else {}
    where = "GPU memory" if device.startswith("cuda") else "main memory"
    assumed = "; 2 bytes a weight assumed, for nothing here tells its dtype" if made.float_bytes_assumed else ""
    rows = {
        "model": f"{made.model}, {made.parameters / 1e6:.1f} M parameters",
        "recipe": f"{made.recipe} {made.bits}",
        "quantized linears": f"{len(made.targets)}, {made.bits_per_block_weight:.2f} bits a weight",
        "kept in floating point": f"{len(made.kept)} linears, and all norms, embeddings and biases",
        "transformer before": f"{size(made.float_bytes)}{assumed}",
        "transformer after": f"{size(made.quantized_bytes)} ({made.float_bytes / made.quantized_bytes:.2f}× smaller)",
        "tokens a sample": f"{made.tokens}",
        f"time on {device}, about": duration(sum(made.seconds.values())),
        f"{where} of {device}, about": f"{size(made.memory_bytes)}, {size(made.streamed_memory_bytes)} with --stream",
    }
    if beside:
        each = ", ".join(f"{name} {size(count)}" for name, count in beside.items())
        gone = "; with --stream, text encoders leave when prompts are encoded, and blocks of another transformer stay on disk"
        rows["beside it in the same memory"] = f"{size(sum(beside.values()))} ({each}){gone}"
    rows["work folder, about"] = f"{size(made.disk_bytes)}, {size(made.streamed_disk_bytes)} with --stream"
    table(f"Plan for {title}", rows | text_rows)

    def again(other: Mapping[str, Any]) -> Plan:
        return make_plan(folder, recipe, call | other, device, dtype, part=part, timed=False)

    for line in advise(made, beside, free_memory(device), device, again, trains=recipe.trains):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if layers:
        for name, (n, k) in made.targets.items():
            console.print(f"  quantize {name} [{n}, {k}]", markup=False, highlight=False, soft_wrap=True)
        for name, reason in made.kept.items():
            console.print(f"  keep     {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    return made.to_dict() | {"companion_bytes": beside}
