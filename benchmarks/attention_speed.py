"""Int8 attention against `scaled_dot_product_attention`, interleaved in one process, on this machine.

    OMP_NUM_THREADS=1 python benchmarks/attention_speed.py --threads 1 --results benchmarks/results/attention-speed.json

Random queries, keys and values in the layout that diffusers' models have: this is about speed. Int8 is the whole operator, from
float to float, means and rounding included. With one thread, time is that of the thread, so that other programs count
less.
"""

import argparse
import platform
import shlex
import sys
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from s2q.bench import interleaved
from s2q.runtime.attention import int8_attention
from s2q.runtime.native import attention as native
from s2q.storage import write_json

HEADS = {"CogVideoX-2B": (30, 64), "Wan-1.3B": (12, 128), "demo": (5, 32)}


class Attention(torch.nn.Module):
    """What a transformer's attention is to torch."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[1, H, S, D] three times → the same."""
        return scaled_dot_product_attention(query, key, value)


@torch.inference_mode()
def compare(heads: int, width: int, tokens: int, repeats: int) -> dict[str, float]:
    """Median seconds of each candidate, all timed in turn."""
    generator = torch.Generator().manual_seed(0)
    high = [torch.randn(1, tokens, heads, width, generator=generator).transpose(1, 2) for _ in range(3)]
    low = [tensor.bfloat16() for tensor in high]
    plain, int8 = Attention(), Attention()
    installed = int8_attention(int8)
    seconds = interleaved(
        {
            "float32": lambda: plain(*high),
            "bfloat16": lambda: plain(*low),
            "int8 float32": lambda: int8(*high),
            "int8 bfloat16": lambda: int8(*low),
        },
        repeats,
    )
    assert not installed.declined, installed.declined
    return seconds


def main() -> None:
    """Print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[208, 1024, 2048, 4096])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    missing = native.why_not()
    if missing is not None:
        parser.error(f"there is nothing to time: native code {missing}")
    rows = []
    columns = ["heads of", "H × D", "tokens", "over float32", "over bfloat16", "int8, 10⁹ operations a second"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for model, (heads, width) in HEADS.items():
        for tokens in chosen.tokens:
            seconds = compare(heads, width, tokens, chosen.repeats)
            ratios = [seconds[kind] / seconds[f"int8 {kind}"] for kind in ("float32", "bfloat16")]
            rate = 4 * heads * width * tokens**2 / seconds["int8 float32"] / 1e9
            print(
                f"| {model} | {heads} × {width} | {tokens} | {ratios[0]:.2f}× | {ratios[1]:.2f}× | {rate:.0f} |",
                flush=True,
            )
            shape = {"model": model, "heads": heads, "width": width, "tokens": tokens}
            rows.append(
                shape | {"median_seconds": seconds, "ratios": dict(zip(("float32", "bfloat16"), ratios, strict=True))}
            )
    if chosen.results:
        made = {
            "command": shlex.join(["python", "benchmarks/attention_speed.py", *sys.argv[1:]]),
            "threads": chosen.threads,
            "torch": torch.__version__,
            "instruction_set": native.instruction_sets()[-1],
            "device": platform.machine(),
            "rows": rows,
        }
        write_json(chosen.results, made)


if __name__ == "__main__":
    main()
