"""A CogVideoX block with random weights, in float32 and bfloat16 and quantized: seconds of a call, and attention's share.

    python benchmarks/blocks.py --tokens 1024 4096 --threads 1 --results benchmarks/results/blocks.json

The block is diffusers' own, of the width of a released model, on the model's text tokens and as many video tokens as asked
for, without rotary embeddings. Its linears are quantized to W4A6 (modulation to W4A8) with random codes under the schemes of
`s2q bench`; q, k and v share their quantized input. All candidates take turns in one process; seconds are medians. Attention
is timed alone on tensors of the same shape.
"""

import argparse
import copy
import platform
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn

from s2q.bench import SCHEMES, interleaved, quantized
from s2q.runtime.linear import SharedInput
from s2q.runtime.native.library import instruction_set
from s2q.storage import write_json

# Heads, channels of a head, channels of the time embedding, text tokens.
MODELS = {"CogVideoX-2B": (30, 64, 512, 226), "CogVideoX-5B": (48, 64, 512, 226), "demo": (5, 32, 128, 16)}
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What the recipes' schemes come to: s2q_vdit is a transform, s2q_plus a transform and groups, or cheaper with Hadamard blocks.
TIMED = ("transform", "transform and groups", "Hadamard blocks and groups")


def block_of(model: str) -> CogVideoXBlock:
    """The block with random weights, float32."""
    heads, head, time_embed, _ = MODELS[model]
    torch.manual_seed(0)
    return CogVideoXBlock(heads * head, heads, head, time_embed, attention_bias=True).eval()


def quantize_block(block: CogVideoXBlock, scheme: str) -> CogVideoXBlock:
    """A copy with every linear in W4A6, those of the modulation in W4A8."""
    block, generator = copy.deepcopy(block), torch.Generator().manual_seed(0)
    for name, module in list(block.named_modules()):
        if type(module) is nn.Linear:
            act_bits = 8 if name.startswith("norm") else 6
            sizes = (module.in_features, module.out_features)
            new = quantized(*sizes, 4, act_bits, "cpu", generator, **SCHEMES[scheme])
            block.set_submodule(name, new)
    shared = SharedInput(3)
    for name in ("to_q", "to_k", "to_v"):
        getattr(block.attn1, name).shared_input = shared
    return block


def inputs_of(model: str, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Video tokens, text tokens and time embedding."""
    heads, head, time_embed, text = MODELS[model]
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, tokens, heads * head), (1, text, heads * head), (1, time_embed))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@torch.inference_mode()
def measure(model: str, tokens: int, repeats: int) -> dict[str, Any]:
    """One row of the results."""
    plain, (heads, head, _, text) = block_of(model), MODELS[model]
    blocks = {scheme: quantize_block(plain, scheme) for scheme in TIMED}
    candidates: dict[str, Callable[[], Any]] = {}
    for kind, dtype in KINDS.items():
        given = inputs_of(model, tokens, dtype)
        candidates[kind] = partial(copy.deepcopy(plain).to(dtype), *given)
        for scheme, block in blocks.items():
            candidates[f"{scheme}, {kind}"] = partial(copy.deepcopy(block).to(dtype), *given)
        parts = torch.randn(3, 1, heads, tokens + text, head).to(dtype)
        candidates[f"attention alone, {kind}"] = partial(nn.functional.scaled_dot_product_attention, *parts)
    seconds = interleaved(candidates, repeats)
    ratios = {f"{s}, over {kind}": seconds[kind] / seconds[f"{s}, {kind}"] for s in TIMED for kind in KINDS}
    shares = {
        name: seconds[f"attention alone, {name.rpartition(', ')[2]}"] / value
        for name, value in seconds.items()
        if not name.startswith("attention")
    }
    return {"model": model, "tokens": tokens, "median_seconds": seconds, "ratios": ratios, "attention_share": shares}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="CogVideoX-2B")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="video tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for tokens in arguments.tokens:
        row = measure(arguments.model, tokens, arguments.repeats)
        rows.append(row)
        print(f"{row['model']}, {tokens} video tokens: " + ", ".join(f"{k} {v:.2f}×" for k, v in row["ratios"].items()))
        print("  share of attention: " + ", ".join(f"{k} {v:.0%}" for k, v in row["attention_share"].items()))
    made = {
        "command": "python " + shlex.join(sys.argv),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "device": platform.machine(),
        "instruction_set": instruction_set(),
        "rows": rows,
    }
    if arguments.results:
        write_json(arguments.results, made)


if __name__ == "__main__":
    main()
