"""A whole clip of a demo pipeline, from prompt to frames: floats against quantized, with and without int8 attention.

    python benchmarks/clip.py demo --recipes s2q_vdit s2q_plus --batch 1 4 --threads 1

The pipeline is the trained demo; the quantized transformers have its configuration, bfloat16 or float32 for what is not
packed, and random codes, for time does not depend on the values. All take turns in one process; seconds are medians.
`transformer` is the share of a clip that is spent in it.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
from torch import nn

from s2q import int8_attention
from s2q.bench import interleaved
from s2q.models.pipelines import DEMOS, OpenPipeline, open_pipeline
from s2q.prompts import evaluation_prompts
from s2q.random_model import random_model
from s2q.recipes import get_recipe
from s2q.storage import write_json
from s2q.version import VERSION

FLOAT = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def clocked(module: nn.Module) -> Iterator[list[float]]:
    """Inside, the seconds of each call of `module` are noted."""
    seconds: list[float] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: seconds.append(-time.process_time())),
        module.register_forward_hook(lambda *_: seconds.__setitem__(-1, seconds[-1] + time.process_time())),
    ]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Maker:
    """Makes clips with a transformer in the place of the pipeline's own."""

    opened: OpenPipeline
    transformer: nn.Module
    prompts: list[str]
    int8: bool = False
    """Whether attention is computed in int8."""

    def __call__(self) -> None:
        """One clip of each prompt, at once."""
        attention = int8_attention(self.transformer) if self.int8 else nullcontext()
        with self.opened.using(self.transformer), attention:
            self.opened.pipe(
                self.prompts, generator=torch.Generator().manual_seed(0), output_type="np", **self.opened.call
            )


def makers(name: str, recipes: list[str], bits: str, batch: int) -> dict[str, Maker]:
    """All candidates for `batch` clips at once."""
    made = {}
    for kind, dtype in FLOAT.items():
        opened = open_pipeline(name, dtype=dtype)
        opened.pipe.set_progress_bar_config(disable=True)
        prompts = evaluation_prompts(name, batch)
        own = opened.transformer
        transformers = {kind: own}
        for recipe in recipes:
            transformers[f"{recipe}, {kind}"] = random_model(
                type(own), dict(own.config), get_recipe(recipe, bits), dtype
            )
        for said, transformer in transformers.items():
            made[said] = Maker(opened, transformer, prompts)
            made[f"{said}, int8 attention"] = replace(made[said], int8=True)
    return made


@torch.inference_mode()
def study(name: str, recipes: list[str], bits: str, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Each candidate's seconds for `batch` clips, its ratio to both floats, and its transformer's share."""
    made = makers(name, recipes, bits, batch)
    seconds = interleaved(made, repeats)
    rows = {}
    for kind, maker in made.items():
        started = time.process_time()
        with clocked(maker.transformer) as inside:
            maker()
        share = sum(inside) / (time.process_time() - started)
        rows[kind] = {"seconds": seconds[kind], "transformer_share": share}
        rows[kind] |= {f"faster_than_{other}": seconds[other] / seconds[kind] for other in FLOAT}
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", choices=DEMOS)
    parser.add_argument("--recipes", nargs="+", default=["s2q_vdit", "s2q_plus"])
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="clips at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = {
        "command": "python " + shlex.join(sys.argv),
        "versions": {"s2q": VERSION, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "bits": options.bits,
        "repeats": options.repeats,
        "studies": [
            {
                "pipeline": name,
                "batch": batch,
                "rows": study(name, options.recipes, options.bits, batch, options.repeats),
            }
            for name in options.pipelines
            for batch in options.batch
        ],
    }
    write_json(options.results / "clip.json", made)
    for one in made["studies"]:
        print(f"{one['pipeline']}, {one['batch']} at once")
        for kind, row in one["rows"].items():
            over = ", ".join(f"{row[f'faster_than_{other}']:.2f}× {other}" for other in FLOAT)
            print(f"  {kind}: {row['seconds']:.3f} s, {over}, {row['transformer_share']:.0%} in the transformer")


if __name__ == "__main__":
    main()
