"""Run a comparison: quantize each cell, make its clips, keep what they measured."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s2q.calibration.recording import record_trajectories
from s2q.comparison.cells import Cell
from s2q.comparison.clips import make_float_clips, measure_cell
from s2q.comparison.steps import PROMPTS, step_errors
from s2q.media import described
from s2q.models.pipelines import OpenPipeline, load_transformer, weight_files
from s2q.progress import NoProgress, Progress
from s2q.prompts import calibration_prompts
from s2q.run import quantize
from s2q.storage import file_digest, fingerprint, read_json, write_json
from s2q.workspace import Workspace

BATCH = 16


def compare(
    opened: OpenPipeline,
    cells: Sequence[Cell],
    out: Path,
    *,
    prompts: Sequence[str],
    calibrate_on: Sequence[str] | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> dict[str, Any]:
    """Quantize and measure every cell; cells that are done already, in this call or an earlier one, are read.

    Of two transformers the one that is meant is quantized, and the other stays as it is.

    Args:
        out: trajectories, full-precision clips and cells are kept here; it belongs to one pipeline and its prompts.
        prompts: held out of calibration; the n-th clip starts from seed n in every cell.
        calibrate_on: prompts to calibrate on; default are the bundled ones, other ones for each calibration seed.
        batch: clips made at a time.
        on_cell: called before each cell.

    Returns:
        {"float": one row a clip, "cells": [{"variant", "bits", "seed", "clips": one row a clip, "steps": one row a prompt of
        the first 16, see `s2q.comparison.steps`, "seconds", "storage"}]}.

    Raises:
        ValueError: a recipe that cannot be had, prompts that the pipeline cannot be called with, or a folder that belongs
            to something else.
    """
    progress = progress or NoProgress()
    recipes = [cell.recipe() for cell in cells]
    opened.check(prompts)
    settings = {
        "pipeline": opened.source,
        "weights": {path.name: file_digest(path) for path in weight_files(opened.folder / opened.part)},
        "call": opened.call,
        "prompts": list(map(described, prompts)),
        "batch": batch,
        "dtype": str(opened.transformer.dtype),
        "device": opened.transformer.device.type,
    }
    if len(opened.transformers) > 1:
        settings["part"] = opened.part
    folder = Workspace.open(out, settings).folder
    reference = make_float_clips(opened, prompts, batch, folder / "float", progress)
    store = record_trajectories(opened, prompts[:PROMPTS], 0, folder / "steps", progress)
    results = []
    for cell, recipe in zip(cells, recipes, strict=True):
        path = folder / "cells" / cell.key / "cell.json"
        settled = fingerprint(recipe.model_dump(mode="json"))
        done = read_json(path)
        if done is None or done["recipe"] != settled:
            on_cell(cell)
            if done is not None:  # the recipe has changed since
                shutil.rmtree(path.parent)
            given = calibrate_on or calibration_prompts(opened.source, recipe.sampler.prompts, cell.seed)
            made = quantize(
                opened,
                recipe,
                path.parent / "transformer",
                prompts=given,
                seed=cell.seed,
                work=path.parent / "work",
                shared=folder / "calibration" / f"seed{cell.seed}-{fingerprint(list(map(described, given)))[:8]}",
                progress=progress,
            )
            transformer = load_transformer(path.parent / "transformer", opened.transformer.dtype)
            transformer.to(opened.transformer.device)
            rows = measure_cell(opened, transformer, prompts, batch, folder / "float", progress)
            errors = step_errors(opened, transformer, store)
            done = {
                "recipe": settled,
                "variant": cell.variant,
                "bits": cell.bits,
                "seed": cell.seed,
                "seconds": made.seconds,
                "storage": made.storage.to_dict(),
                "clips": rows,
                "steps": [{"step_error": error} for error in errors],
            }
            write_json(path, done)
            done = read_json(path)  # as it will be read: JSON knows no infinity
            made.workspace.remove()
        results.append(done)
    return {"float": reference, "cells": results}
