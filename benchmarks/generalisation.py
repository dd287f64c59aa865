"""How much of a calibration holds for prompts that it has not seen: the error of one step, seen and held out.

    python benchmarks/generalisation.py --pipeline demo --seeds 3

For each variant the quantized transformer and the float one are called alike, as the float pipeline calls it: on steps of
ten prompts that were calibrated on (seen), of ten others from the scenes that the demo was trained on (unseen), and of ten
from scenes that nobody has seen (held out). The error is ‖e − ê‖² / ‖e‖² of what they predict. Unlike
that of finished clips it does not depend on how errors add up along the steps, so that it differs little between seeds.
Beside it the same for the outputs of each kind of linear, given the float model's input, unseen over seen: what GPTQ and
learning fit that is not there in other prompts.

Results: benchmarks/results/PIPELINE-generalisation.json, and a table.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore
from s2q.comparison.cells import Cell
from s2q.comparison.steps import predictions
from s2q.models.pipelines import OpenPipeline, load_transformer, open_pipeline
from s2q.progress import NoProgress
from s2q.prompts import calibration_prompts, evaluation_prompts
from s2q.reproducible import ask_for_the_same_bits
from s2q.run import quantize
from s2q.runtime.linear import QuantLinear
from s2q.storage import write_json

PROMPTS = 10
MORE = "sampler.prompts=40"
VARIANTS = (
    "s2q_plus",
    f"s2q_plus:{MORE}",
    "s2q_plus:sampler.count=200:optim.epochs=1",
    "s2q_plus:gptq.act_order=false:gptq.step_search=false",
    "s2q_vdit",
    "s2q_vdit:sampler.kind=uniform",
    "quarot",
)


@contextmanager
def watched(float_model: nn.Module, linears: Mapping[str, nn.Module]) -> Iterator[dict[str, list[float]]]:
    """Name of each linear → squared error and square of its output, summed over what `float_model` runs inside."""
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in linears}

    def hook(name: str):
        def see(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            sums[name][0] += float((linears[name](args[0]) - out).double().square().sum())
            sums[name][1] += float(out.double().square().sum())

        return see

    handles = [float_model.get_submodule(name).register_forward_hook(hook(name)) for name in linears]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def errors(opened: OpenPipeline, quantized: nn.Module, store: TrajectoryStore) -> tuple[float, dict[str, float]]:
    """Error of the prediction; and of the outputs of each kind of linear, all relative squares."""
    linears = {name: module for name, module in quantized.named_modules() if isinstance(module, QuantLinear)}
    lost, power = 0.0, 0.0
    with watched(opened.transformer, linears) as sums:
        for _, expected, got in predictions(opened, quantized, store):
            lost += float((expected - got).double().square().sum())
            power += float(expected.double().square().sum())
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, pair in sums.items():
        kind = kinds[name.split(".", 2)[2]]
        kind[0], kind[1] = kind[0] + pair[0], kind[1] + pair[1]
    return lost / power, {kind: error / square for kind, (error, square) in kinds.items()}


def measured(source: str, cell: Cell, folder: Path) -> dict[str, Any]:
    """One variant from one seed: errors on each side."""
    opened, recipe = open_pipeline(source), cell.recipe()
    prompts = calibration_prompts(source, recipe.sampler.prompts, cell.seed)
    made = quantize(opened, recipe, folder / cell.key, prompts=prompts, seed=cell.seed)
    model = load_transformer(made.folder, opened.transformer.dtype)
    others = [prompt for prompt in calibration_prompts(source, 100, cell.seed) if prompt not in prompts]
    sides = {"seen": prompts[:PROMPTS], "unseen": others[:PROMPTS], "held_out": evaluation_prompts(source, PROMPTS)}
    found = {}
    for name, some in sides.items():
        store = record_trajectories(opened, some, cell.seed, folder / f"{cell.key}-{name}", NoProgress())
        found[name] = dict(zip(("prediction", "linears"), errors(opened, model, store), strict=True))
    return found


def summary(cells: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a variant: means over seeds, spread of the error held out, and unseen over seen by kind of linear."""
    rows = []
    for variant, found in cells.items():
        held = [one["held_out"]["prediction"] for one in found]
        linears = found[0]["seen"]["linears"]
        ratios = {
            kind: statistics.mean(one["unseen"]["linears"][kind] / one["seen"]["linears"][kind] for one in found)
            for kind in linears
        }
        rows.append(
            {
                "variant": variant,
                "seeds": len(found),
                **{side: statistics.mean(one[side]["prediction"] for one in found) for side in found[0]},
                "held_out_std": statistics.stdev(held) if len(held) > 1 else None,
                "unseen_over_seen": ratios,
            }
        )
    return sorted(rows, key=lambda row: row["held_out"])


def main() -> None:
    """Measure all variants from all seeds."""
    ask_for_the_same_bits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default="demo")
    parser.add_argument("--bits", default="W4A8")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    cells: dict[str, list[dict[str, Any]]] = {variant: [] for variant in arguments.variants}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for variant, found in cells.items():
                found.append(measured(arguments.pipeline, Cell(variant, arguments.bits, seed), Path(folder)))
                last = {side: one["prediction"] for side, one in found[-1].items()}
                print(variant, seed, json.dumps(last), flush=True)
    made = {
        "command": "python " + shlex.join(sys.argv),
        "bits": arguments.bits,
        "prompts": PROMPTS,
        "torch": torch.__version__,
        "rows": summary(cells),
    }
    write_json(arguments.results / f"{arguments.pipeline}-generalisation.json", made)


if __name__ == "__main__":
    main()
