"""A step of learning of one CogVideoX block, its passes over inputs and weights in native code against plain torch.

    python benchmarks/learning.py --model CogVideoX-2B --latent 1 16 28 --results benchmarks/results/learning.json

The block is of a released width, with random weights and inputs: time does not depend on the values. A step is the loss and
all its gradients, of one sample of two guidance branches. All candidates take turns in one process; seconds are medians.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from blocks import MODELS
from diffusers import CogVideoXTransformer3DModel
from efficiency import inputs
from study import add_options, write

from s2q.bench import interleaved
from s2q.models.blocks import joined_tokens, record_calls, replay
from s2q.models.lookup import resolve
from s2q.quantization.learn import Gradients
from s2q.quantization.objective import BlockSample
from s2q.quantization.schemes import groups_for
from s2q.quantization.simulate import simulate
from s2q.recipes import get_recipe

RECIPES = ("s2q_vdit W4A6", "s2q_plus W4A6", "s2q_plus W4A8")
BACKENDS = {"native": "", "plain torch": "torch"}


def step(gradients: Gradients, sample: BlockSample, backend: str) -> None:
    """One step, but for the optimizer's own; `backend` is a value of S2Q_BACKEND."""
    with patch.dict(os.environ, {"S2Q_BACKEND": backend}):
        gradients.find(sample, 0.5)


def measure(model: str, latent: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """One row of the results."""
    heads, head, _ = MODELS[model]
    torch.manual_seed(0)
    whole = CogVideoXTransformer3DModel(num_attention_heads=heads, attention_head_dim=head, num_layers=1).eval()
    family = resolve(whole)
    recorded = record_calls(whole, family, inputs(whole, latent, 2))
    ((_, block),) = family.blocks(whole)
    with torch.no_grad():
        target = joined_tokens(family, replay(block, family, recorded.first, recorded.sides[0]))
    sample = BlockSample(recorded.first, recorded.sides[0], target)
    candidates: dict[str, Callable[[], Any]] = {}
    for name in RECIPES:
        recipe = get_recipe(*name.split())
        simulated = simulate(block, family, recipe, groups_for(recipe, family, block), [sample], seed=0)
        gradients = Gradients(simulated, family, recipe)
        for said, backend in BACKENDS.items():
            candidates[f"{name}, {said}"] = partial(step, gradients, sample, backend)
    seconds = interleaved(candidates, repeats)
    ratios = {name: seconds[f"{name}, plain torch"] / seconds[f"{name}, native"] for name in RECIPES}
    return {"model": model, "tokens": target.shape[1], "median_seconds": seconds, "ratios": ratios}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["demo", "CogVideoX-2B"])
    parser.add_argument("--latent", type=int, nargs=3, default=(1, 16, 28), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for model in arguments.model:
        rows.append(measure(model, tuple(arguments.latent), arguments.repeats))
        print(f"{model}: " + ", ".join(f"{name} {ratio:.2f}×" for name, ratio in rows[-1]["ratios"].items()))
    write(arguments, rows)


if __name__ == "__main__":
    main()
