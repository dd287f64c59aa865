"""What int8 attention does to the clips of a demo, by itself and on top of quantized linears.

    python benchmarks/attention_error.py demo --clips 16 --results benchmarks/results/demo-int8-attention.json

Each variant is compared with the full-precision pipeline, same prompts and seeds: full precision with int8 attention, the
quantized transformer with float attention, and with int8 attention.
"""

import argparse
import copy
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from diffusers.utils import logging

from s2q.evaluation.metrics import Pair, fidelity, measure
from s2q.models.pipelines import DEMOS, OpenPipeline, load_transformer, open_pipeline
from s2q.progress import NoProgress
from s2q.prompts import calibration_prompts, evaluation_prompts
from s2q.recipes import get_recipe, override
from s2q.run import quantize
from s2q.runtime.attention import attention_of, int8_attention
from s2q.storage import write_json
from s2q.twins import make_twins

SHOWN = ("psnr_db", "ssim", "latent_relative_mse")


def lost(opened: OpenPipeline, candidate: torch.nn.Module, prompts: list[str], seed: int) -> dict:
    """Fidelity of `candidate` to the pipeline's own transformer, over all prompts, and how its attention was computed."""
    with tempfile.TemporaryDirectory() as folder:
        twins = make_twins(opened, candidate, prompts, seed, Path(folder), NoProgress())
    pairs = [Pair(t.reference, t.candidate, t.reference_latents, t.candidate_latents, t.step_errors) for t in twins]
    return fidelity([measure(pair) for pair in pairs]) | {"attention": attention_of(candidate)}


def main() -> None:
    """Print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", choices=DEMOS)
    parser.add_argument("--recipe", default="quarot")
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument("--set", action="append", default=[], help="Change a field of the recipe; repeat it.")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    logging.disable_progress_bar()
    opened = open_pipeline(chosen.pipeline)
    recipe = override(get_recipe(chosen.recipe, chosen.bits), chosen.set)
    prompts = calibration_prompts(chosen.pipeline, recipe.sampler.prompts, chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        quantize(opened, recipe, Path(folder) / "transformer", prompts=prompts, seed=chosen.seed)
        quantized = load_transformer(Path(folder) / "transformer", torch.float32).eval()
    candidates = {"full precision": copy.deepcopy(opened.transformer), f"{chosen.recipe} {chosen.bits}": quantized}
    compared, rows = evaluation_prompts(chosen.pipeline, chosen.clips), []
    print(f"| linears | attention | {' | '.join(SHOWN)} |\n|---|---|{'---|' * len(SHOWN)}")
    for linears, candidate in candidates.items():
        for kind in ("float", "int8") if candidate is quantized else ("int8",):
            if kind == "int8":
                int8_attention(candidate)
            row = {"linears": linears} | lost(opened, candidate, compared, chosen.seed)
            print(f"| {linears} | {kind} | {' | '.join(f'{row[name]:.5g}' for name in SHOWN)} |", flush=True)
            rows.append(row)
    if chosen.results:
        command = shlex.join(["python", "benchmarks/attention_error.py", *sys.argv[1:]])
        write_json(chosen.results, {"command": command, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
