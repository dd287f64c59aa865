"""The command `s2q plan`."""

from typing import Annotated

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
    """Tell what would be quantized, the size before and after, the memory and the time; loads no weights."""
    from s2q.models.folder import PARTS
    from s2q.models.pipelines import default_call, locate
    from s2q.planning import plan as make_plan

    folder = locate(pipeline, part)
    chosen = chosen_recipe(recipe, bits, set_)
    call = {name: value for name, value in call_of(steps, None, height, width, num_frames).items() if value is not None}
    kind = chosen_device(device)
    made = make_plan(
        folder, chosen, default_call(pipeline, folder) | call, kind, chosen_dtype(dtype, kind), part=part or PARTS[0]
    )
    rows = {
        "model": f"{made.model}, {made.parameters / 1e6:.1f} M parameters",
        "recipe": f"{made.recipe} {made.bits}",
        "quantized linears": f"{len(made.targets)}, {made.bits_per_block_weight:.2f} bits a weight",
        "kept in floating point": f"{len(made.kept)} linears, and all norms, embeddings and biases",
        "transformer before": size(made.float_bytes),
        "transformer after": f"{size(made.quantized_bytes)} ({made.float_bytes / made.quantized_bytes:.2f}× smaller)",
        "tokens a sample": f"{made.tokens}",
        "calibration time, about": duration(sum(made.seconds.values())),
        "calibration memory, about": f"{size(made.memory_bytes)}, {size(made.streamed_memory_bytes)} with --stream",
        "work folder, about": f"{size(made.disk_bytes)}, {size(made.streamed_disk_bytes)} with --stream",
    }
    text_rows, text = planned_text(folder)
    table(f"Plan for {pipeline}", rows | text_rows)
    if layers:
        for name, (n, k) in made.targets.items():
            console.print(f"  quantize {name} [{n}, {k}]", markup=False, highlight=False)
        for name, reason in made.kept.items():
            console.print(f"  keep     {name}: {reason}", markup=False, highlight=False)
    write_summary(json_file, made.to_dict() | text)
