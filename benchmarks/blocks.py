"""A CogVideoX block with random weights, in float32 and bfloat16 and quantized: seconds of a call, and attention's share.

    python benchmarks/blocks.py --tokens 1024 4096 --threads 1 --results benchmarks/results/blocks.json

The block is diffusers' own, of the width of a released model, on the model's text tokens and as many video tokens as asked
for, without rotary embeddings. Its linears are packed as each recipe would have them, with random codes; the last one's is
timed with attention in int8 as well. All candidates take turns in one process; seconds are medians. Attention is timed alone
on tensors of the same shape.
"""

import argparse
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from study import add_options, write
from torch import Tensor, nn

from s2q import int8_attention
from s2q.bench import interleaved
from s2q.random_model import random_model
from s2q.recipes import get_recipe

# Heads, channels of a head; all have as many text tokens, but for the demo.
MODELS = {"CogVideoX-2B": (30, 64, 226), "CogVideoX-5B": (48, 64, 226), "demo": (5, 32, 16)}
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKED = ("s2q_vdit W4A6", "s2q_plus W4A6", "s2q_plus W4A8")
IN_INT8 = f"{PACKED[-1]}, int8 attention"


def block_of(model: str, packed: str | None, dtype: torch.dtype) -> nn.Module:
    """The block with random weights, packed by a recipe at some bits ("s2q_plus W4A6"), or float."""
    heads, head, _ = MODELS[model]
    config = {"num_attention_heads": heads, "attention_head_dim": head, "num_layers": 1}
    whole = random_model(CogVideoXTransformer3DModel, config, packed and get_recipe(*packed.split()), dtype)
    return whole.transformer_blocks[0]


def inputs_of(block: nn.Module, model: str, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Video tokens, text tokens and time embedding."""
    heads, head, text = MODELS[model]
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, tokens, heads * head), (1, text, heads * head), (1, block.norm1.linear.in_features))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def call(block: nn.Module, given: tuple[Tensor, ...], in_int8: bool) -> None:
    """One call of the block."""
    with int8_attention(block) if in_int8 else nullcontext():
        block(*given)


@torch.inference_mode()
def measure(model: str, tokens: int, repeats: int, kinds: Iterable[str] = KINDS) -> dict[str, Any]:
    """One row of the results, for tokens of some of `KINDS`."""
    heads, head, text = MODELS[model]
    candidates: dict[str, Callable[[], Any]] = {}
    for kind in kinds:
        dtype = KINDS[kind]
        blocks = {packed: block_of(model, packed, dtype) for packed in (None, *PACKED)}
        given = inputs_of(blocks[None], model, tokens, dtype)
        candidates[kind] = partial(call, blocks[None], given, False)
        for packed in PACKED:
            candidates[f"{packed}, {kind}"] = partial(call, blocks[packed], given, False)
        candidates[f"{IN_INT8}, {kind}"] = partial(call, blocks[PACKED[-1]], given, True)
        parts = torch.randn(3, 1, heads, tokens + text, head).to(dtype)
        candidates[f"attention alone, {kind}"] = partial(nn.functional.scaled_dot_product_attention, *parts)
    seconds = interleaved(candidates, repeats)
    timed = (*PACKED, IN_INT8)
    ratios = {f"{name}, over {kind}": seconds[kind] / seconds[f"{name}, {kind}"] for name in timed for kind in kinds}
    shares = {
        name: seconds[f"attention alone, {name.rpartition(', ')[2]}"] / value
        for name, value in seconds.items()
        if not name.startswith(("attention", IN_INT8))
    }
    return {"model": model, "tokens": tokens, "median_seconds": seconds, "ratios": ratios, "attention_share": shares}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="CogVideoX-2B")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="video tokens")
    parser.add_argument(
        "--dtypes", choices=KINDS, nargs="+", default=list(KINDS), help="of the tokens, and of what is not packed"
    )
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for tokens in arguments.tokens:
        row = measure(arguments.model, tokens, arguments.repeats, arguments.dtypes)
        rows.append(row)
        print(f"{row['model']}, {tokens} video tokens: " + ", ".join(f"{k} {v:.2f}×" for k, v in row["ratios"].items()))
        print("  share of attention: " + ", ".join(f"{k} {v:.0%}" for k, v in row["attention_share"].items()))
    write(arguments, rows)


if __name__ == "__main__":
    main()
