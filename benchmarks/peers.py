"""The packed linear beside those of other libraries, on this CPU, interleaved in one process: speed, bytes, and error.

    python -m venv peers && peers/bin/pip install . torchao optimum-quanto bitsandbytes
    peers/bin/python benchmarks/peers.py --model CogVideoX-2B Wan-1.3B demo --tokens 256 1024 --threads 1

Each makes what it can of the same `nn.Linear` with random weights, and is called with the same bfloat16 tokens; torchao's also
compiled, as it is meant to be used. The error is that of its output against float32, relative, on these Gaussian weights and
tokens: it tells formats apart, and is no figure of the quality of any video. What a library cannot do here is listed with what
it said.
"""

import argparse
import copy
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2q.bench import SHAPES, interleaved
from s2q.checkpoint import SchemeSpec
from s2q.numerics.packing import pack
from s2q.numerics.quantizer import grid, quantize
from s2q.runtime.linear import QuantLinear
from s2q.storage import write_json

Make = Callable[[nn.Linear], nn.Module]


def s2q_linear(linear: nn.Linear, weight_bits: int, act_bits: int) -> nn.Module:
    """Rounded to nearest, packed as a checkpoint is."""
    rows, columns = linear.weight.shape
    packed = QuantLinear(columns, rows, True, SchemeSpec(weight_bits=weight_bits, act_bits=act_bits, targets={}))
    scale, _ = grid(linear.weight.float(), weight_bits, True)
    packed.weight_packed.data = pack(quantize(linear.weight.float(), scale, weight_bits), weight_bits)
    packed.weight_scale.data = scale
    packed.bias.data = linear.bias.data.clone()
    return packed


def torchao_linear(linear: nn.Linear, name: str, compiled: bool, **settings: Any) -> nn.Module:
    """By torchao's `quantize_`, with the configuration class `name`."""
    import torchao.quantization as torchao

    holder = nn.Sequential(linear)
    torchao.quantize_(holder, getattr(torchao, name)(**settings))
    return torch.compile(holder, dynamic=False) if compiled else holder


def quanto_linear(linear: nn.Linear, weights: str, activations: str | None) -> nn.Module:
    """By optimum-quanto; activations get the range of the tokens that are measured."""
    from optimum import quanto

    holder = nn.Sequential(linear)
    kinds = {"weights": getattr(quanto, weights)}
    if activations is not None:
        kinds["activations"] = getattr(quanto, activations)
    quanto.quantize(holder, **kinds)
    if activations is not None:
        with quanto.Calibration():
            holder(torch.randn(512, linear.in_features, dtype=linear.weight.dtype))
    quanto.freeze(holder)
    return holder


def bitsandbytes_linear(linear: nn.Linear, kind: str, **settings: Any) -> nn.Module:
    """By bitsandbytes' layer `kind`."""
    import bitsandbytes

    made = getattr(bitsandbytes.nn, kind)(linear.in_features, linear.out_features, **settings)
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


TORCHAO: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("torchao W8A8 dynamic", "Int8DynamicActivationInt8WeightConfig", {}),
    ("torchao W8 weight-only", "Int8WeightOnlyConfig", {}),
    ("torchao W4A8 dynamic", "Int8DynamicActivationIntxWeightConfig", {"weight_dtype": torch.int4}),
    ("torchao W4 weight-only", "IntxWeightOnlyConfig", {"weight_dtype": torch.int4}),
)
CANDIDATES: dict[str, Make] = {
    "torch bfloat16": lambda linear: linear,
    "s2q W4A6": lambda linear: s2q_linear(linear, 4, 6),
    "s2q W4A8": lambda linear: s2q_linear(linear, 4, 8),
    "s2q W8A8": lambda linear: s2q_linear(linear, 8, 8),
    **{
        f"{name}{', compiled' * compiled}": partial(torchao_linear, name=config, compiled=compiled, **settings)
        for name, config, settings in TORCHAO
        for compiled in (False, True)
    },
    "optimum-quanto W8A8": lambda linear: quanto_linear(linear, "qint8", "qint8"),
    "optimum-quanto W8 weight-only": lambda linear: quanto_linear(linear, "qint8", None),
    "optimum-quanto W4 weight-only": lambda linear: quanto_linear(linear, "qint4", None),
    "bitsandbytes LLM.int8": lambda linear: bitsandbytes_linear(linear, "Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes NF4 weight-only": lambda linear: bitsandbytes_linear(
        linear, "Linear4bit", quant_type="nf4", compute_dtype=torch.bfloat16
    ),
}


def _bytes(module: nn.Module) -> int:
    """Of everything that a checkpoint of the module holds, by the storage that it occupies."""

    def size(tensor: Tensor) -> int:
        inner = getattr(tensor, "__tensor_flatten__", None)
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter and inner is not None:
            return sum(size(getattr(tensor, name)) for name in inner()[0])
        return tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else tensor.nbytes

    return sum(size(tensor) for tensor in [*module.parameters(), *module.buffers()])


@torch.inference_mode(False)
@torch.no_grad()
def compare(columns: int, rows_out: int, tokens: int, repeats: int) -> dict[str, Any]:
    """All candidates on one shape: median seconds in turn, ratio to bfloat16, bytes of the weight, relative error."""
    torch.compiler.reset()  # past some compiled linears it would go back to eager
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(columns, rows_out)
    linear.weight.data = torch.randn(rows_out, columns, generator=generator) * columns**-0.5
    linear.bias.data = torch.randn(rows_out, generator=generator) * 0.1
    x = torch.randn(tokens, columns, generator=generator)
    exact, x = linear(x), x.bfloat16()
    made, refused, rows = {}, {}, {}
    for name, make in CANDIDATES.items():
        try:
            made[name] = make(copy.deepcopy(linear).bfloat16())
            output = made[name](x).float()
        except Exception as error:  # whatever a library raises is what is to be told
            made.pop(name, None)
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else repr(error)
            continue
        rows[name] = {"relative_error": float((output - exact).square().sum() / exact.square().sum())}
        rows[name]["bytes"] = _bytes(made[name])
    seconds = interleaved({name: lambda m=module: m(x) for name, module in made.items()}, repeats)
    for name, row in rows.items():
        row |= {"median_seconds": seconds[name], "over_bfloat16": seconds["torch bfloat16"] / seconds[name]}
    return {"k": columns, "n": rows_out, "m": tokens, "rows": rows, "refused": refused}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Compare on the shapes of some models, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, nargs="+", default=["CogVideoX-2B"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = {
        "command": "python " + shlex.join(sys.argv),
        "versions": {name: _version(name) for name in ("s2q", "torch", "torchao", "optimum-quanto", "bitsandbytes")},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": options.threads,
        "shapes": [
            {"model": model} | compare(k, n, tokens, options.repeats)
            for model in options.model
            for tokens in options.tokens
            for k, n in SHAPES[model]
        ],
    }
    write_json(options.results / "peers.json", made)
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
