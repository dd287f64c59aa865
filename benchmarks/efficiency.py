"""The paper's Table 5 and Figure 7 on this machine: storage, memory and time of one denoising step, float against packed.

    python benchmarks/efficiency.py CogVideoX-2B --latent 3 28 32 --recipes s2q_vdit s2q_plus --threads 2

Models are built from the published configuration with random weights: time and memory do not depend on the values, so no
quality is taken from them. Steps are timed in turn in one process; memory is the peak of a process of its own for each.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from released import MODELS, class_and_config
from torch import nn
from torch.overrides import TorchFunctionMode

from s2q.bench import interleaved
from s2q.models.family import patch_of
from s2q.random_model import random_model
from s2q.recipes import get_recipe
from s2q.storage import write_json
from s2q.version import VERSION

FLOAT = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT_TOKENS = 226


class AttentionClock(TorchFunctionMode):
    """Seconds spent in attention while it is active."""

    seconds = 0.0

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        if function is nn.functional.scaled_dot_product_attention:
            self.seconds += time.perf_counter() - started
        return result


def make(kind: str, name: str, bits: str) -> nn.Module:
    """The model `name` as `kind` says: a dtype, or a recipe (then everything that is not packed is bfloat16)."""
    recipe = None if kind in FLOAT else get_recipe(kind, bits)
    return random_model(*class_and_config(MODELS[name]), recipe, FLOAT.get(kind, torch.bfloat16))


def inputs(model: nn.Module, latent: tuple[int, int, int], batch: int) -> dict[str, Any]:
    """Arguments of a call: a latent of F × h × w and text, for models called as CogVideoX is."""
    generator, dtype, config = torch.Generator().manual_seed(0), model.dtype, model.config
    frames, height, width = latent
    arguments = {
        "hidden_states": torch.randn(batch, frames, config.in_channels, height, width, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, config.text_embed_dim, generator=generator).to(dtype),
        "timestep": torch.full((batch,), 500),
        "return_dict": False,
    }
    if config.use_rotary_positional_embeddings:
        _, rows, columns = patch_of(config)
        tokens = frames * (height // rows) * (width // columns)
        arguments["image_rotary_emb"] = tuple(torch.zeros(tokens, config.attention_head_dim) for _ in range(2))
    return arguments


def alone(kind: str, options: argparse.Namespace) -> dict[str, int]:
    """Bytes of the weights, and the peak of resident memory, of a process that makes one step."""
    given = ["--alone", kind, options.model, "--bits", options.bits, "--batch", str(options.batch)]
    given += ["--latent", *map(str, options.latent), "--threads", str(options.threads)]
    printed = subprocess.run([sys.executable, __file__, *given], check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


@torch.inference_mode()
def one_step(options: argparse.Namespace) -> None:
    """What `alone` runs."""
    model = make(options.alone, options.model, options.bits)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model(**inputs(model, options.latent, options.batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stored = sum(tensor.nbytes for tensor in model.parameters())
    print(json.dumps({"weight_bytes": stored, "loaded_peak_bytes": before, "peak_bytes": peak}))


@torch.inference_mode()
def study(options: argparse.Namespace) -> dict[str, Any]:
    """All kinds: memory each alone, then time in turn."""
    kinds = [*FLOAT, *options.recipes]
    rows = {kind: alone(kind, options) for kind in kinds}
    models = {kind: make(kind, options.model, options.bits) for kind in kinds}
    calls = {kind: inputs(model, options.latent, options.batch) for kind, model in models.items()}
    seconds = interleaved({kind: lambda k=kind: models[k](**calls[k]) for kind in kinds}, options.repeats)
    for kind, model in models.items():
        started = time.perf_counter()
        with AttentionClock() as clock:
            model(**calls[kind])
        share = clock.seconds / (time.perf_counter() - started)
        rows[kind] |= {"step_seconds": seconds[kind], "attention_share": share}
        rows[kind] |= {f"faster_than_{other}": seconds[other] / seconds[kind] for other in FLOAT}
    config = models["bfloat16"].config
    _, height, width = (size // patch for size, patch in zip(options.latent, patch_of(config), strict=True))
    return {
        "model": options.model,
        "bits": options.bits,
        "batch": options.batch,
        "tokens": options.latent[0] * height * width + TEXT_TOKENS,
        "threads": options.threads,
        "repeats": options.repeats,
        "rows": rows,
    }


def main() -> None:
    """Run the study, or one process of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[name for name in MODELS if name.startswith("CogVideoX")])
    parser.add_argument("--recipes", nargs="+", default=["s2q_vdit", "s2q_plus"])
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument("--latent", type=int, nargs=3, default=(3, 28, 32), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.latent = tuple(options.latent)
    torch.set_num_threads(options.threads)
    if options.alone:
        one_step(options)
        return
    made = {
        "command": "python " + shlex.join(sys.argv),
        "versions": {"s2q": VERSION, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "capability": torch.backends.cpu.get_cpu_capability(),
        **study(options),
    }
    write_json(options.results / f"efficiency-{options.model}-batch{options.batch}.json", made)
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
