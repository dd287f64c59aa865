"""What text encoders in few bits cost: error of the prompt embeddings, and PSNR of the clips, on the three demos.

    python benchmarks/text_encoders.py --results benchmarks/results/text-encoders.json

The encoders of the demos are trained and tiny (widths 32 to 128). The error is ‖e − ê‖² / ‖e‖² of what the transformer
receives of prompts that nothing was calibrated on; the transformer stays in full precision.
"""

import argparse
import itertools
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2q.calibration.encoding import call_up_to_transformer
from s2q.evaluation.metrics import psnr_db
from s2q.models.pipelines import OpenPipeline, default_call, locate, open_pipeline
from s2q.prompts import calibration_prompts, evaluation_prompts, readback_of
from s2q.storage import write_json
from s2q.text_encoders.opening import load_text_encoders, text_encoder_classes
from s2q.text_encoders.quantize import PROMPTS, quantize_text_encoder, text_recipe
from s2q.twins import generate

PIPELINES = ("demo", "demo-wan", "demo-hunyuanvideo")
RECIPES = ("rtn", "gptq")
BITS = ("W8A16", "W4A16")
GROUPS = (None, 128, 64, 32)


def embeddings(opened: OpenPipeline, prompts: Sequence[str]) -> list[Tensor]:
    """What the transformer receives of each prompt: [tokens, channels] without masked tokens, and pooled vectors."""
    calls: list[dict[str, Any]] = []
    handle = opened.pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    try:
        call_up_to_transformer(opened, prompts)
    finally:
        handle.remove()
    found = []
    for call in calls:
        mask = call.get("encoder_attention_mask")
        states = call["encoder_hidden_states"]
        found.append(states.flatten(0, -2) if mask is None else states[mask.bool()])
        if "pooled_projections" in call:
            found.append(call["pooled_projections"])
    return found


def relative_error(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> float:
    """Mean of ‖e − ê‖² / ‖e‖²."""
    return statistics.mean(
        float((one - other).square().sum() / one.square().sum())
        for one, other in zip(reference, candidate, strict=True)
    )


class Demo:
    """One demo pipeline, what it makes in full precision, and text encoders quantized from it."""

    def __init__(self, name: str, clips: int, prompts: int, folder: Path):
        self.name, self.folder, self.pipeline = name, folder, locate(name)
        self.prompts = evaluation_prompts(name, clips)
        self.calibration = calibration_prompts(name, prompts, 0)
        self.opened = open_pipeline(name)
        self.reference = embeddings(self.opened, self.prompts)
        self.clips = [torch.from_numpy(generate(self.opened, text, seed)) for seed, text in enumerate(self.prompts)]

    def quantized(self, part: str, recipe: str, bits: str, changes: Sequence[str] = ()) -> tuple[Any, int, int]:
        """The text encoder, and its bytes before and after."""
        out = self.folder / f"{self.name}-{part}-{recipe}-{bits}-{len(list(self.folder.iterdir()))}"
        call = default_call(self.name, self.pipeline)
        done = quantize_text_encoder(
            self.name, text_recipe(recipe, bits, changes), out, part=part, prompts=self.calibration, **call
        )
        loaded = load_text_encoders(self.pipeline, [out], torch.float32, "cpu")[part]
        return loaded, done.storage.float_bytes, done.storage.quantized_bytes

    def error(self, text_encoders: dict[str, Any]) -> float:
        """Of the embeddings with these in the place of the pipeline's own."""
        self.opened.text_encoders = text_encoders
        with self.opened.using(self.opened.transformer):
            return relative_error(self.reference, embeddings(self.opened, self.prompts))

    def cost(self, text_encoders: dict[str, Any]) -> dict[str, Any]:
        """`error`, mean PSNR of the clips, and how many things the clips still show of those that they showed."""
        error, psnr, shown, asked = self.error(text_encoders), [], 0, 0
        with self.opened.using(self.opened.transformer):
            for seed, text in enumerate(self.prompts):
                clip = torch.from_numpy(generate(self.opened, text, seed))
                psnr.append(psnr_db(self.clips[seed].numpy(), clip.numpy()))
                before, after = readback_of(self.name, text, self.clips[seed]), readback_of(self.name, text, clip)
                shown += sum(after[key] for key in before if before[key])
                asked += sum(before.values())
        return {"embedding_error": error, "psnr_db": statistics.mean(psnr), "readback": [shown, asked]}


def costs(demo: Demo) -> Iterator[dict[str, Any]]:
    """A row for each part, bits and recipe; where there are several encoders, also for all of them together."""
    parts = list(text_encoder_classes(demo.pipeline).items())
    for bits, recipe in itertools.product(BITS, RECIPES):
        made = {part: demo.quantized(part, recipe, bits) for part, _ in parts}
        chosen = [[part] for part, _ in parts] + ([[part for part, _ in parts]] if len(parts) > 1 else [])
        for names in chosen:
            before, after = (sum(made[name][side] for name in names) for side in (1, 2))
            row = {"pipeline": demo.name, "parts": names, "models": [dict(parts)[name] for name in names]}
            row |= {"bits": bits, "recipe": recipe, "float_bytes": before, "quantized_bytes": after}
            yield row | demo.cost({name: made[name][0] for name in names})


def grids(demo: Demo) -> Iterator[dict[str, Any]]:
    """A row for each part, recipe and grid at four bits: the error of the embeddings alone."""
    for part, model in text_encoder_classes(demo.pipeline).items():
        for recipe, symmetric, group in itertools.product(RECIPES, (True, False), GROUPS):
            changes = [f"linear.symmetric_weights={json.dumps(symmetric)}", f"linear.group_size={json.dumps(group)}"]
            encoder, before, after = demo.quantized(part, recipe, "W4A16", changes)
            row = {"pipeline": demo.name, "part": part, "model": model, "recipe": recipe, "symmetric": symmetric}
            row |= {"group_size": group, "float_bytes": before, "quantized_bytes": after}
            yield row | {"embedding_error": demo.error({part: encoder})}


def costs_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `costs` as Markdown."""
    lines = [
        "| pipeline | text encoder | | error of the embeddings: rtn | gptq | PSNR, dB: rtn | gptq | still shown: rtn | gptq |",
        "|---" * 9 + "|",
    ]
    keys = list(dict.fromkeys((row["pipeline"], tuple(row["models"]), row["bits"]) for row in rows))
    for pipeline, models, bits in keys:
        pair = [row for row in rows if (row["pipeline"], tuple(row["models"]), row["bits"]) == (pipeline, models, bits)]
        ordered = [next(row for row in pair if row["recipe"] == recipe) for recipe in RECIPES]
        cells = [f"{row['embedding_error']:.1e}" for row in ordered] + [f"{row['psnr_db']:.1f}" for row in ordered]
        cells += ["{} of {}".format(*row["readback"]) for row in ordered]
        names = " and ".join(model.removesuffix("EncoderModel").removesuffix("Model") for model in models)
        lines.append(f"| `{pipeline}` | {names} | {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def grids_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `grids` as Markdown: errors relative to one scale a row rounded to nearest, mean over the encoders."""
    lines = [
        "| groups of | rtn, symmetric | rtn, zero points | gptq, symmetric | gptq, zero points |",
        "|---" * 5 + "|",
    ]
    base = {
        (row["pipeline"], row["part"]): row["embedding_error"]
        for row in rows
        if row["recipe"] == RECIPES[0] and row["symmetric"] and row["group_size"] is None
    }
    for group in GROUPS:
        cells = []
        for recipe, symmetric in itertools.product(RECIPES, (True, False)):
            same = [r for r in rows if (r["recipe"], r["symmetric"], r["group_size"]) == (recipe, symmetric, group)]
            ratios = [row["embedding_error"] / base[row["pipeline"], row["part"]] for row in same]
            cells.append(f"{statistics.geometric_mean(ratios):.2f}")
        lines.append(f"| {group or 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Quantize, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    parser.add_argument("--clips", type=int, default=16, help="clips of each pipeline, the n-th from seed n")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="prompts to calibrate on")
    parser.add_argument("--results", type=Path, help="write the JSON here")
    arguments = parser.parse_args()
    made: dict[str, Any] = {"command": "python " + shlex.join(sys.argv), "torch": torch.__version__}
    made |= {"clips": arguments.clips, "prompts": arguments.prompts, "costs": [], "grids": []}
    for name in arguments.pipelines:
        with tempfile.TemporaryDirectory() as folder:
            demo = Demo(name, arguments.clips, arguments.prompts, Path(folder))
            made["grids"] += grids(demo)
            made["costs"] += costs(demo)
    print(costs_table(made["costs"]), grids_table(made["grids"]), sep="\n\n")
    if arguments.results:
        write_json(arguments.results, made)


if __name__ == "__main__":
    main()
