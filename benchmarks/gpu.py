"""What only a GPU can tell: speed of the operators, cost of a denoising step, calibration of a block at real size.

    python benchmarks/gpu.py operators        # linears of every width against bfloat16, interleaved
    python benchmarks/gpu.py efficiency       # storage, peak memory and latency of whole transformers
    python benchmarks/gpu.py calibration      # one block at 17,776 tokens

Weights and inputs are random: speed and memory do not depend on their values, and no figure of quality is taken. Each
writes gpu-COMMAND.json into benchmarks/results/, with the device, the versions and the date. Without a GPU each says so
and exits with code 2; `--device cpu --tiny` runs the same code on tiny models, to show that it runs.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from released import COGVIDEOX, HUNYUANVIDEO, MODELS, WAN, class_and_config
from torch import Tensor, nn
from torch.nn import functional

from s2q import random_model
from s2q.bench import BLOCKS, GROUPS, TRANSFORM, peak, scheme_of
from s2q.models.blocks import joined_tokens, record_calls, replay
from s2q.models.lookup import resolve
from s2q.quantization.block import calibrate_block
from s2q.quantization.objective import BlockSample
from s2q.quantization.schemes import groups_for
from s2q.random_model import fill
from s2q.recipe import Recipe
from s2q.recipes import get_recipe, override
from s2q.runtime.dispatch import choose, multiply, quantize_input
from s2q.runtime.linear import QuantLinear
from s2q.storage import write_json

NO_GPU = 2
STEPS = 50
# M of CogVideoX 49 × 480 × 720, of a short clip, and of Wan 81 × 480 × 832.
TOKENS = (17776, 1024, 32760)
WIDTHS = {
    "CogVideoX-2B": [(1920, 1920), (1920, 7680), (7680, 1920)],
    "CogVideoX-5B": [(3072, 3072), (3072, 12288), (12288, 3072)],
    "HunyuanVideo": [(3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072)],
    "Wan-14B": [(5120, 5120), (5120, 13824), (13824, 5120)],
}
# Of W4A6 with what `s2q_vdit` has beside, and of W4A8 with what the default has.
SCHEMES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "W4A6": (4, 6, {}),
    "W4A4": (4, 4, {}),
    "W4A8": (4, 8, {}),
    "W8A8": (8, 8, {}),
    "W4A6 transform": (4, 6, TRANSFORM),
    "W4A6 groups of 64": (4, 6, GROUPS | {"group_size": 64}),
    "W4A8 Hadamard blocks": (4, 8, BLOCKS),
}
# The paper's recipe at its bits, and the default.
PACKED = (("s2q_vdit", "W4A6"), ("s2q_plus", "W4A8"))
TEXT_TOKENS = {COGVIDEOX["_class_name"]: 226, HUNYUANVIDEO["_class_name"]: 256, WAN["_class_name"]: 512}
# Latents of one sample; HunyuanVideo's are those of 61 × 544 × 960.
LATENTS = {
    "CogVideoX-2B": (13, 16, 60, 90),
    "CogVideoX-5B": (13, 16, 60, 90),
    "HunyuanVideo": (16, 16, 68, 120),
    "Wan-14B": (16, 21, 60, 104),
}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}
TINY = {
    "CogVideoX-tiny": (
        COGVIDEOX
        | SMALL
        | {"text_embed_dim": 24, "in_channels": 4, "sample_width": 4, "sample_height": 4, "sample_frames": 9},
        (3, 4, 4, 4),
    ),
    "HunyuanVideo-tiny": (
        HUNYUANVIDEO | SMALL | {"text_embed_dim": 24, "num_single_layers": 1, "rope_axes_dim": (4, 6, 6)},
        (16, 2, 4, 4),
    ),
    "Wan-tiny": (WAN | SMALL | {"text_dim": 24, "ffn_dim": 64}, (16, 2, 4, 4)),
}


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def interleaved(candidates: dict[str, Callable[[], Any]], device: str, repeats: int, calls: int) -> dict[str, float]:
    """Median seconds of a call of each, `calls` in a row between two marks on the device, candidates in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):  # the first tunes, compiles and warms up
        for name, function in candidates.items():
            synchronize(device)
            if device == "cpu":
                started = time.perf_counter()
                for _ in range(calls):
                    function()
                seconds = (time.perf_counter() - started) / calls
            else:
                marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                marks[0].record()
                for _ in range(calls):
                    function()
                marks[1].record()
                torch.cuda.synchronize()
                seconds = marks[0].elapsed_time(marks[1]) / 1e3 / calls
            if repeat:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def operators(device: str, tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Item 2: every width and number of tokens, all schemes; the peak is that of a large product of torch's."""
    calls = 1 if tiny else 5
    widths = {"tiny": [(96, 64)]} if tiny else WIDTHS
    rows = []
    for model, shapes in widths.items():
        for columns, outputs in shapes:
            plain = fill(nn.Linear(columns, outputs, device="meta", dtype=torch.bfloat16), device)
            made = {}
            for name, scheme in SCHEMES.items():
                empty = QuantLinear(columns, outputs, True, scheme_of(columns, *scheme), "meta", torch.bfloat16)
                made[name] = fill(empty, device)
            for tokens in (32,) if tiny else TOKENS:
                rows.append(_operator_row(model, plain, made, tokens, device, repeats, calls))
    return rows


def _operator_row(
    model: str, plain: nn.Linear, made: dict[str, QuantLinear], tokens: int, device: str, repeats: int, calls: int
) -> dict[str, Any]:
    x = torch.randn(tokens, plain.in_features, device=device).bfloat16()
    choices = {name: choose(linear.problem(x)) for name, linear in made.items()}
    inputs = {
        name: lambda c=choices[name], linear=linear: quantize_input(c, x, linear.input_transform())
        for name, linear in made.items()
    }
    ready = {name: make() for name, make in inputs.items()}
    candidates: dict[str, Callable[[], Any]] = {"bfloat16": lambda: functional.linear(x, plain.weight, plain.bias)}
    for name, linear in made.items():
        candidates[name] = lambda linear=linear: linear(x)
        candidates[f"{name}: input"] = inputs[name]
        candidates[f"{name}: product"] = lambda linear=linear, own=choices[name], given=ready[name]: multiply(
            own, given, linear.packed_weight(), linear.bias, None
        )
    most, candidates["peak"] = peak(device)
    seconds = interleaved(candidates, device, repeats, calls)
    operations = 2 * tokens * plain.in_features * plain.out_features
    row = {"model": model, "k": plain.in_features, "n": plain.out_features, "m": tokens, "median_seconds": seconds}
    row["speed_over_bfloat16"] = {name: seconds["bfloat16"] / seconds[name] for name in made}
    alone = operations / most * seconds["peak"]
    row["share_of_int8_peak"] = {name: alone / seconds[f"{name}: product"] for name in made}
    print(row["model"], row["k"], "→", row["n"], "M", tokens, json.dumps(row["speed_over_bfloat16"]), flush=True)
    return row


def inputs_of(config: dict[str, Any], latents: tuple[int, ...], batch: int, device: str) -> dict[str, Tensor]:
    """Arguments of one call of a transformer, bfloat16."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=device, dtype=torch.bfloat16)

    length = TEXT_TOKENS[config["_class_name"]]
    width = config.get("text_embed_dim", config.get("text_dim", 4096))
    made = {"hidden_states": noise(*latents), "encoder_hidden_states": noise(length, width)}
    made["timestep"] = torch.full((batch,), 500, device=device)
    if config["_class_name"] == HUNYUANVIDEO["_class_name"]:
        made["encoder_attention_mask"] = torch.ones(batch, length, device=device, dtype=torch.long)
        made["pooled_projections"] = noise(768)
        made["guidance"] = torch.full((batch,), 6000.0, device=device, dtype=torch.bfloat16)
    if config.get("use_rotary_positional_embeddings"):
        video = latents[0] * latents[2] * latents[3] // 4
        made["image_rotary_emb"] = tuple(torch.rand(video, 64, device=device) for _ in range(2))
    return made


def empty_model(config: dict[str, Any], recipe: Recipe | None) -> nn.Module:
    """A bfloat16 transformer on the meta device; with a recipe, its linears packed as that recipe packs them."""
    return random_model.empty_model(*class_and_config(config), recipe, torch.bfloat16)


def models(tiny: bool) -> dict[str, tuple[dict[str, Any], tuple[int, ...]]]:
    """Name → configuration and latents."""
    return TINY if tiny else {name: (MODELS[name], latents) for name, latents in LATENTS.items()}


@torch.inference_mode()
def efficiency(device: str, tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Item 3: whole transformers in bfloat16 and as `PACKED` says, batch 1 and 4."""
    rows = []
    for name, (config, latents) in models(tiny).items():
        for packed in (None, *PACKED):
            model = fill(empty_model(config, packed and get_recipe(*packed)), device)
            storage = sum(p.nbytes for p in model.parameters())
            for batch in (1, 4):
                given = inputs_of(config, latents, batch, device)
                held = " ".join(packed or ("bfloat16",))
                row = {"model": name, "linears": held, "batch": batch, "storage_gib": storage / 2**30}
                row |= _one_step(model, given, device, repeats)
                rows.append(row)
                print(json.dumps(row), flush=True)
            del model
    return rows


def _one_step(model: nn.Module, given: dict[str, Tensor], device: str, repeats: int) -> dict[str, Any]:
    """Latency and peak memory of one forward; what does not fit says so."""
    try:
        model(**given)
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = interleaved({"step": lambda: model(**given)}, device, repeats, 1)["step"]
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"out_of_memory": True}
    peak_gib = None if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
    return {"step_seconds": seconds, f"{STEPS}_forwards_seconds_estimated": STEPS * seconds, "peak_gib": peak_gib}


def calibration(device: str, tiny: bool, repeats: int) -> list[dict[str, Any]]:
    """Item 4: one block learnt on 40 samples, one epoch, by each of `PACKED`; `repeats` is not used."""
    rows = []
    count = 2 if tiny else 40
    for name, (config, latents) in models(tiny).items():
        if config["_class_name"] != COGVIDEOX["_class_name"]:
            continue
        for name_of, bits in PACKED:
            recipe = override(get_recipe(name_of, bits), [f"sampler.count={count}", "optim.epochs=1"])
            row = {"model": name, "recipe": f"{name_of} {bits}"}
            rows.append(row | _learn(config | {"num_layers": 1}, latents, recipe, device))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _learn(config: dict[str, Any], latents: tuple[int, ...], recipe: Recipe, device: str) -> dict[str, Any]:
    """Time and peak memory of learning the only block of a model."""
    model = fill(empty_model(config, None), device)
    family, (_, block) = resolve(model), resolve(model).blocks(model)[0]
    samples = []
    for _ in range(recipe.sampler.count):
        call = record_calls(model, family, inputs_of(config, latents, 1, device))
        with torch.no_grad():
            target = joined_tokens(family, replay(block, family, call.first, call.sides[0]))
        weights = torch.ones(target.shape[:2], device=device)
        samples.append(BlockSample(call.first, call.sides[0], target, weights, frames=latents[0]))
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    done = calibrate_block(block, family, recipe, groups_for(recipe, family, block), samples, seed=0)
    peak_gib = None if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30
    row = {"tokens": samples[0].target.shape[1], "samples": len(samples), "epochs": recipe.optim.epochs}
    return row | {"seconds": done.seconds, "peak_gib": peak_gib, "samples_are_held_on": device}


COMMANDS = {"operators": operators, "efficiency": efficiency, "calibration": calibration}


def about(device: str) -> dict[str, Any]:
    """Where and with what a study was made."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "triton") if _there(name)}
    named = platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"device": named, "cuda": torch.version.cuda, "versions": versions, "date": date}


def _there(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def main(given: list[str] | None = None) -> None:
    """Run one study and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny models: only to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(f"{arguments.command}: no GPU here, nothing was measured", file=sys.stderr)
        raise SystemExit(NO_GPU)
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("on the CPU only --tiny makes sense")
    torch.manual_seed(0)
    rows = COMMANDS[arguments.command](arguments.device, arguments.tiny, arguments.repeats)
    command = shlex.join(sys.argv if given is None else ["gpu.py", *given])
    result = {"command": f"python {command}", **about(arguments.device), "rows": rows}
    write_json(arguments.results / f"gpu-{arguments.command}.json", result)


if __name__ == "__main__":
    main()
