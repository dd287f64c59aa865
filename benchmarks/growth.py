"""How cost grows: a block against tokens and width, a calibration against samples and blocks; and whether a line foretells it.

    python benchmarks/growth.py --threads 1

Each study measures some sizes, fits a curve of the kind it can be (a + b·S + c·S² of tokens S and of width, a + b·n of samples
and of blocks; least squared relative error, no coefficient negative), and holds it against one more size, the largest. Random
weights: this is about time alone.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from scipy.optimize import nnls

from s2q.bench import interleaved
from s2q.models.pipelines import open_pipeline
from s2q.prompts import calibration_prompts
from s2q.random_model import random_model
from s2q.recipes import get_recipe, override
from s2q.run import quantize
from s2q.storage import write_json
from s2q.version import VERSION

TEXT_TOKENS = 32


def fit(sizes: Sequence[float], seconds: Sequence[float], degree: int) -> np.ndarray:
    """Coefficients of 1, size, size² …, none negative, with the least squared relative error."""
    powers = np.vander(np.asarray(sizes, dtype=float), degree + 1, increasing=True)
    weights = 1 / np.asarray(seconds, dtype=float)
    return nnls(powers * weights[:, None], np.ones(len(weights)))[0]


def foretold(sizes: Sequence[int], measure: Callable[[Sequence[int]], list[float]], degree: int) -> dict[str, Any]:
    """Measure all `sizes`, fit all but the last, and say how far off the last is."""
    seconds = measure(sizes)
    curve = fit(sizes[:-1], seconds[:-1], degree)
    said = float(np.polynomial.polynomial.polyval(sizes[-1], curve))
    points = [{"size": size, "seconds": taken} for size, taken in zip(sizes, seconds, strict=True)]
    return {
        "points": points,
        "curve": curve.tolist(),
        "foretold_seconds": said,
        "relative_error": said / seconds[-1] - 1,
    }


def _block_call(heads: int, tokens: int, recipe: str, bits: str) -> Callable[[], Any]:
    config = {"num_attention_heads": heads, "num_layers": 1}
    model = random_model(
        diffusers.CogVideoXTransformer3DModel, config, get_recipe(recipe, bits), torch.bfloat16, seed=heads
    )
    width, time_width = heads * 64, model.config.time_embed_dim
    shapes = [(1, tokens - TEXT_TOKENS, width), (1, TEXT_TOKENS, width), (1, time_width)]
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return lambda: model.transformer_blocks[0](*given)


def block_seconds(shapes: Sequence[tuple[int, int]], options: argparse.Namespace) -> list[float]:
    """Median seconds of a quantized CogVideoX block for each (heads of 64, tokens), all in turn."""
    calls = {shape: _block_call(*shape, options.recipe, options.bits) for shape in dict.fromkeys(shapes)}
    with torch.inference_mode():
        seconds = interleaved({str(shape): call for shape, call in calls.items()}, options.repeats)
    return [seconds[str(shape)] for shape in shapes]


def calibration_seconds(counts: Sequence[int], blocks: Sequence[int], options: argparse.Namespace) -> list[float]:
    """Seconds of the learning on the demo, for each number of samples and of blocks counted from the first."""
    opened = open_pipeline("demo")
    prompts = calibration_prompts("demo", 10, 0)
    taken = []
    for count, number in zip(counts, blocks, strict=True):
        changes = [f"sampler.count={count}", "optim.epochs=2"]
        recipe = override(get_recipe(options.recipe, options.bits), changes)
        with tempfile.TemporaryDirectory() as folder:
            done = quantize(opened, recipe, Path(folder) / "out", prompts=prompts)
            own = [done.workspace.block_metadata(index)["seconds"] for index in range(number)]
        taken.append(sum(own))
    return taken


def main() -> None:
    """Run all four studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="s2q_vdit")
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument(
        "--heads", type=int, default=30, help="of the block whose tokens grow (default: 30, CogVideoX-2B)"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[10, 15, 20, 30, 48], help="heads of 64, at 512 tokens"
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3, 6])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, everything = time.perf_counter(), max(options.blocks)
    studies = {
        "tokens": foretold(options.tokens, lambda s: block_seconds([(options.heads, n) for n in s], options), 2),
        "heads": foretold(options.widths, lambda s: block_seconds([(n, 512) for n in s], options), 2),
        "samples": foretold(options.samples, lambda s: calibration_seconds(s, [everything] * len(s), options), 1),
        "blocks": foretold(options.blocks, lambda s: calibration_seconds([20] * len(s), s, options), 1),
    }
    made = {
        "command": "python " + shlex.join(sys.argv),
        "versions": {"s2q": VERSION, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "threads": options.threads,
        "recipe": f"{options.recipe} {options.bits}",
        "seconds": time.perf_counter() - started,
        "studies": studies,
    }
    write_json(options.results / "growth.json", made)
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
