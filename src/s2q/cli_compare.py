"""The command `s2q compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_open import open_for
from s2q.cli_options import (
    DeviceOption,
    DtypeOption,
    FramesOption,
    GuidanceOption,
    HeightOption,
    PartOption,
    PromptsOption,
    Source,
    StepsOption,
    WidthOption,
    call_of,
)
from s2q.cli_work import calibration_file, comparison_prompts, say_if_fewer
from s2q.messages import console
from s2q.recipes import DEFAULT_BITS, RECIPES


def compare(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of everything; the same command goes on in it.")],
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="A recipe, or a variant RECIPE:FIELD=VALUE. Repeat it. Default: all recipes."),
    ] = None,
    bits: Annotated[list[str] | None, typer.Option("--bits", help=f"Repeat it. Default: {DEFAULT_BITS}.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Calibrations of each, from seeds 0, 1, …", min=1)] = 3,
    clips: Annotated[int, typer.Option("--clips", help="Held-out prompts, one clip each.", min=2)] = 64,
    batch: Annotated[int, typer.Option("--batch", help="Clips made at a time.", min=1)] = 16,
    prompts: PromptsOption = None,
    calibration_prompts: Annotated[
        Path | None, typer.Option("--calibration-prompts", help="A file as --prompts, of others to calibrate on.")
    ] = None,
    part: PartOption = None,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Compare recipes on the same held-out prompts: mean, spread over calibration seeds, paired tests.

    Writes RESULTS.json (every clip of every cell), summary.json, TABLE.md and index.html. --prompts are those compared on;
    those calibrated on are bundled, others for each seed where there are others, or of --calibration-prompts.
    """
    from s2q.comparison.cells import grid
    from s2q.comparison.grid import compare as run_compare
    from s2q.comparison.page import page
    from s2q.comparison.summary import markdown, summary
    from s2q.progress import terminal_progress
    from s2q.storage import replacing, write_json

    cells = grid(recipe or list(RECIPES), bits or [DEFAULT_BITS], seeds)
    given = comparison_prompts(pipeline, clips, prompts, part)
    most = max((recipe.sampler.prompts for cell in cells if (recipe := cell.recipe()).needs_samples), default=0)
    calibrate_on = calibration_file(pipeline, calibration_prompts, most, part)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, device=device, dtype=dtype, part=part, **call)
    say_if_fewer(given, clips)
    count = iter(range(1, len(cells) + 1))

    def tell(cell) -> None:
        console.print(f"{next(count)}/{len(cells)} {cell.variant} {cell.bits}, seed {cell.seed}", highlight=False)

    results = run_compare(
        opened,
        cells,
        out,
        prompts=given,
        calibrate_on=calibrate_on,
        batch=batch,
        progress=terminal_progress(),
        on_cell=tell,
    )
    results = {"command": "s2q " + shlex.join(sys.argv[1:]), **results}
    made = {"command": results["command"], **summary(results)}
    write_json(out / "RESULTS.json", results)
    write_json(out / "summary.json", made)
    table = markdown(made)
    texts = {"TABLE.md": f"`{made['command']}`\n\n{table}", "index.html": page(made, f"Recipes compared on {pipeline}")}
    for name, text in texts.items():
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out / 'index.html'}", markup=False, highlight=False)
