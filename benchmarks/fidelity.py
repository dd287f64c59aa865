"""How near to full precision each recipe stays: recipes × calibration seeds on the same held-out prompts.

    python benchmarks/fidelity.py --bits W4A6 --recipes rtn gptq s2q_vdit --seeds 0 1 2 --clips 16 -o runs/fidelity

Each cell is kept in its own folder, so a run that was broken off goes on. Writes RESULTS.json (with the command and
the versions) and prints a table: mean over all clips and seeds, and the standard deviation of the seeds' means.
A variant of a recipe is written NAME:FIELD=VALUE, for instance `s2q_vdit:sampler.kind=uniform`.
"""

import argparse
import shlex
import statistics
import sys
from pathlib import Path

import torch

from s2q.assessment import evaluate
from s2q.models.pipelines import load_transformer, open_pipeline
from s2q.progress import LineProgress
from s2q.prompts import calibration_prompts, evaluation_prompts
from s2q.recipes import get_recipe, override
from s2q.run import quantize
from s2q.storage import write_json

COLUMNS = ("psnr_db", "ssim", "latent_relative_mse", "motion_ratio")
READBACK = ("background", "colour", "motion", "shape")


def cell(pipeline: str, variant: str, bits: str, seed: int, clips: int, out: Path) -> dict:
    """Quantize and evaluate once; what is done already is read."""
    name, *changes = variant.split(":")
    recipe = override(get_recipe(name, bits), changes)
    opened = open_pipeline(pipeline)
    prompts = calibration_prompts(pipeline, recipe.sampler.prompts, seed)
    done = quantize(
        opened, recipe, out / "transformer", prompts=prompts, seed=seed, work=out / "work", progress=LineProgress()
    )
    transformer = load_transformer(out / "transformer", opened.pipe.transformer.dtype)
    # The same clips for every cell: the seed of the noise is not the seed of the calibration.
    report = evaluate(
        opened, transformer, out / "transformer", out, prompts=evaluation_prompts(pipeline, clips), seconds=done.seconds
    ).report
    keys = ("fidelity", "readback", "seconds", "storage", "clip_seconds", "versions")
    return {"recipe": variant, "bits": bits, "seed": seed} | {key: report[key] for key in keys}


def table(cells: list[dict]) -> str:
    """Markdown: a row a recipe and bits."""
    header = ["recipe", "bits", "seeds", *COLUMNS, *(f"read-back {name}" for name in READBACK)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for key in dict.fromkeys((c["recipe"], c["bits"]) for c in cells):
        rows = [c for c in cells if (c["recipe"], c["bits"]) == key]
        values = [_spread([row["fidelity"][column] for row in rows]) for column in COLUMNS]
        if rows[0]["readback"]:
            values += [
                f"{100 * statistics.mean(row['readback']['quantized'][name] for row in rows):.1f} % "
                f"(float {100 * rows[0]['readback']['float'][name]:.1f} %)"
                for name in READBACK
            ]
        lines.append("| " + " | ".join([*key, str(len(rows)), *values]) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{spread}"


def main() -> None:
    """Run all cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--bits", nargs="+", default=["W4A6"])
    parser.add_argument("--recipes", nargs="+", default=["rtn", "s2q_vdit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--results", type=Path, help="also write the JSON here")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/fidelity"))
    arguments = parser.parse_args()
    cells = []
    for bits in arguments.bits:
        for variant in arguments.recipes:
            for seed in arguments.seeds:
                folder = arguments.output / f"{variant.replace(':', '-')}-{bits}-seed{seed}"
                cells.append(cell(arguments.pipeline, variant, bits, seed, arguments.clips, folder))
                command = "python " + shlex.join(sys.argv)
                results = {"command": command, "threads": torch.get_num_threads(), "cells": cells}
                for path in {arguments.output / "RESULTS.json", arguments.results} - {None}:
                    write_json(path, results)
    print(table(cells))


if __name__ == "__main__":
    main()
