"""The paper's tables and figures, on a demo pipeline: one name each.

    python benchmarks/tables.py methods --pipeline demo --seeds 3

    methods     Tables 1 and 2: every method at W4A6 and W4A4
    samples     Table 3: 20, 40 and 80 calibration samples
    selection   Figure 6a and Table 6: which samples
    tokens      Figure 6b: no token weights, and λ_min from 0.1 to 0.7
    transfer    Table 8: PTQ4DiT, with salient samples, with token weights as well
    spread      what samples spread over all steps change
    balanced    salient samples that are taken evenly of steps and of prompts
    plus        what each part of s2q_plus adds, and whether salient samples help it
    default     s2q_plus with and without Hadamard blocks at the down projections, beside the nearest published methods
    eight       tokens of 8 bits: s2q_plus as it is there, and as it is at fewer bits
    eights      every method at W4A8, the default bits
    fewer       the default recipe at fewer bits, as it is and as it was, beside the nearest published method
    rounding    what GPTQ's order and its search for step sizes add to s2q_plus
    faithful    s2q_vdit beside the nearest published method of its size
    learned     the two recipes that learn, at the default bits
    epochs      s2q_plus with three times the steps
    leads       what s2q_plus could have beside: smaller groups, groups in the weights, a low-rank branch
    rotation    s2q_plus with Hadamard blocks, which cost less, nowhere or everywhere
    costs       Tables 4 and 9: what calibration costs by stage
    study       what might help where the paper's parts do not

All of one pipeline share a folder, so that no cell is computed twice and what was broken off goes on. Each writes
benchmarks/results/PIPELINE-NAME.json (means, spread, tests, the command) and prints its table.

The demos take 20 steps, not 50: "all timesteps of one prompt" (ATOP) is 40 samples of two prompts here.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

import diffusers
import torch
import transformers

from s2q.comparison.cells import grid
from s2q.comparison.grid import compare
from s2q.comparison.page import page
from s2q.comparison.summary import markdown, summary
from s2q.models.pipelines import open_pipeline
from s2q.progress import terminal_progress
from s2q.prompts import evaluation_prompts
from s2q.recipes import RECIPES
from s2q.reproducible import ask_for_the_same_bits
from s2q.storage import replacing, write_json
from s2q.version import VERSION

S2Q, PLUS = "s2q_vdit", "s2q_plus"
UNIFORM = f"{S2Q}:sampler.kind=uniform"
PLAIN_ORDER, PLAIN_STEPS = "gptq.act_order=false", "gptq.step_search=false"
# What it was before GPTQ's order and search, when the tables were made that take it so.
BEFORE = f"{PLUS}:{PLAIN_ORDER}:{PLAIN_STEPS}"
# With the Kronecker transform everywhere, at down projections too.
KRONECKER = f"{BEFORE}:linear.transform.down_rotation=null"
# What it is at fewer than 8 bits.
GROUPED = f"{BEFORE}:linear.act_group_size=64:linear.symmetric_acts=false"
GROUPED += ":linear.transform.rotation=kronecker:linear.transform.down_rotation=hadamard_blocks"
# SVDQuant's 32 directions are a hundredth of the released models' width and a fifth of a demo's; 2 are a hundredth there.
SAME_SHARE = "svdquant:linear.low_rank.rank=2"

TABLES: dict[str, tuple[list[str], list[str]]] = {
    "methods": ([*RECIPES, SAME_SHARE], ["W4A6", "W4A4"]),
    "samples": ([f"{S2Q}:sampler.count=20", S2Q, f"{S2Q}:sampler.count=80"], ["W4A6"]),
    "selection": (
        [
            f"{UNIFORM}:sampler.pool=2",
            f"{UNIFORM}:sampler.pool=5",
            f"{S2Q}:sampler.kind=random:sampler.pool=5",
            f"{S2Q}:sampler.score=diffusion",
            f"{S2Q}:sampler.score=quantization",
            S2Q,
            UNIFORM,
            f"{S2Q}:sampler.stratified=true",
        ],
        ["W4A4"],
    ),
    "tokens": (
        [
            f"{S2Q}:objective.token_weights=false",
            *(f"{S2Q}:objective.lambda_min={low}" for low in (0.1, 0.3)),
            S2Q,
            f"{S2Q}:objective.lambda_min=0.7",
        ],
        ["W4A6"],
    ),
    "transfer": (
        [
            "ptq4dit",
            "ptq4dit:sampler.kind=salient",
            "ptq4dit:sampler.kind=salient:objective.token_weights=true",
        ],
        ["W4A6"],
    ),
    "spread": ([S2Q, UNIFORM], ["W4A6"]),
    "balanced": ([UNIFORM, f"{S2Q}:sampler.stratified=true:sampler.balanced=true"], ["W4A4"]),
    "plus": (
        [
            f"{UNIFORM}:objective.token_weights=false",
            f"{PLUS}:linear.act_group_size=null:modulation.act_group_size=null",
            PLUS,
            f"{PLUS}:sampler.kind=salient:sampler.stratified=true",
            f"{PLUS}:sampler.kind=salient",
        ],
        ["W4A4"],
    ),
    "default": ([BEFORE, KRONECKER, "quarot", SAME_SHARE], ["W4A6", "W4A4"]),
    "eight": ([BEFORE, GROUPED, "quarot", SAME_SHARE], ["W4A8"]),
    "eights": ([*RECIPES, SAME_SHARE], ["W4A8"]),
    "fewer": ([PLUS, BEFORE, "quarot"], ["W4A6", "W4A4"]),
    "rounding": (
        [PLUS, f"{PLUS}:{PLAIN_ORDER}", f"{PLUS}:{PLAIN_STEPS}", BEFORE],
        ["W4A8"],
    ),
    "faithful": ([S2Q, "quarot"], ["W4A6", "W4A4"]),
    "learned": ([PLUS, S2Q], ["W4A8"]),
    "epochs": ([PLUS, f"{PLUS}:optim.epochs=15"], ["W4A6", "W4A4"]),
    "leads": (
        [
            PLUS,
            f"{PLUS}:linear.act_group_size=32",
            f"{PLUS}:linear.group_size=64",
            f"{PLUS}:linear.low_rank.rank=2",
            f"{PLUS}:linear.low_rank.rank=2:linear.low_rank.start=zero",
        ],
        ["W4A4"],
    ),
    "rotation": (
        [
            BEFORE,
            KRONECKER,
            f"{BEFORE}:linear.transform.rotation=hadamard_blocks",
        ],
        ["W4A4"],
    ),
    "costs": (list(RECIPES), ["W4A4"]),
    "study": (
        [
            S2Q,
            UNIFORM,
            f"{UNIFORM}:optim.propagate_error=true",
            f"{UNIFORM}:objective.guided=1",
            f"{UNIFORM}:objective.token_weights=false",
            f"{S2Q}:sampler.stratified=true",
            f"{UNIFORM}:objective.token_scope=modality:objective.weighted_hessian=true",
        ],
        ["W4A4"],
    ),
}


def costs(made: dict) -> str:
    """Seconds by stage as a table."""
    stages = list(made["rows"][0]["seconds"])
    lines = ["| recipe | bits | " + " | ".join(stage.replace("_", " ") for stage in stages) + " |"]
    lines.append("|---" * (len(stages) + 2) + "|")
    for row in made["rows"]:
        cells = " | ".join(f"{row['seconds'][stage]:.1f} s" for stage in stages)
        lines.append(f"| {row['variant']} | {row['bits']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the tables asked for."""
    ask_for_the_same_bits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--seeds", type=int, default=3, help="calibrations of each (default: 3)")
    parser.add_argument("--clips", type=int, default=64, help="held-out prompts (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="clips made at a time (default: 32)")
    parser.add_argument("--bits", nargs="+", help="instead of the table's own")
    parser.add_argument("--set", nargs="+", default=[], help="FIELD=VALUE for every recipe, such as optim.epochs=5")
    parser.add_argument("-o", "--output", type=Path, help="default: runs/tables/PIPELINE")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    out = arguments.output or Path("runs/tables") / arguments.pipeline
    opened = open_pipeline(arguments.pipeline)
    prompts = evaluation_prompts(arguments.pipeline, arguments.clips)
    for name in arguments.tables:
        variants, bits = TABLES[name]
        variants = [":".join([variant, *arguments.set]) for variant in variants]
        cells = grid(variants, arguments.bits or bits, arguments.seeds)
        results = compare(
            opened,
            cells,
            out,
            prompts=prompts,
            batch=arguments.batch,
            progress=terminal_progress(),
            on_cell=lambda cell: print(cell.key, flush=True),
        )
        made = {
            "command": "python " + shlex.join(sys.argv),
            "versions": {
                "s2q": VERSION,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            **summary(results),
        }
        write_json(arguments.results / f"{arguments.pipeline}-{name}.json", made)
        with replacing(out / f"{name}.html") as path:
            path.write_text(page(made, f"{name}: {arguments.pipeline}"), encoding="utf-8")
        print(costs(made) if name == "costs" else markdown(made))


if __name__ == "__main__":
    main()
