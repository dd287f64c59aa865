"""What it costs to calibrate on less than is generated afterwards: fewer denoising steps, or smaller videos.

    python benchmarks/shorter_calibration.py --pipeline demo

The recipe is calibrated on trajectories of each kind, with as many samples; the clips compared are always of the pipeline's
own steps and size. Results: benchmarks/results/PIPELINE-shorter-calibration.json, and a table.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from s2q.comparison.clips import make_float_clips, measure_cell
from s2q.models.pipelines import load_transformer, open_pipeline
from s2q.progress import NoProgress
from s2q.prompts import calibration_prompts, evaluation_prompts
from s2q.recipes import DEFAULT, DEFAULT_BITS, get_recipe
from s2q.reproducible import ask_for_the_same_bits
from s2q.run import quantize
from s2q.storage import write_json

CALLS: dict[str, dict[str, Any]] = {
    "20 steps, 32×32, as generated": {},
    "10 steps": {"num_inference_steps": 10},
    "5 steps": {"num_inference_steps": 5},
    "16×16": {"height": 16, "width": 16},
}
MEASURED = ("psnr_db", "ssim", "latent_relative_mse", "motion_ratio")


def main() -> None:
    """Measure all kinds of trajectories."""
    ask_for_the_same_bits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    source, recipe = arguments.pipeline, get_recipe(DEFAULT, DEFAULT_BITS)
    opened, prompts = open_pipeline(source), evaluation_prompts(source, arguments.clips)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_float_clips(opened, prompts, 32, folder / "float", NoProgress())
        for number, (what, call) in enumerate(CALLS.items()):
            found, seconds = [], []
            for seed in range(arguments.seeds):
                given = calibration_prompts(source, recipe.sampler.prompts, seed)
                out = folder / f"{number}-{seed}"
                made = quantize(open_pipeline(source, **call), recipe, out, prompts=given, seed=seed)
                model = load_transformer(made.folder, torch.float32)
                found += measure_cell(opened, model, prompts, 32, folder / "float", NoProgress())
                seconds.append(sum(made.seconds.values()))
            means = {name: statistics.mean(clip[name] for clip in found) for name in MEASURED}
            rows.append({"calibrated_on": what, **means, "calibration_seconds": statistics.mean(seconds)})
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    made = {
        "command": "python " + shlex.join(sys.argv),
        "recipe": f"{DEFAULT} {DEFAULT_BITS}",
        "seeds": arguments.seeds,
    }
    made |= {"clips": arguments.clips, "torch": torch.__version__, "rows": rows}
    write_json(arguments.results / f"{source}-shorter-calibration.json", made)


if __name__ == "__main__":
    main()
