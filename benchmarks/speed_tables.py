"""Tables of docs/speed.md from the results of the studies of speed; results_page.py fills them in."""

from collections.abc import Mapping
from typing import Any

FLOATS = ("float32", "bfloat16")
# What is told of a linear beside its ratios, of bfloat16 tokens.
SHARES = {
    "shares_of_peak": "of the peak of integer products",
    "shares_of_input": "of its time in transforming and quantizing",
}


def _lines(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def _threads(made: Mapping[str, Any]) -> str:
    return f"{made['threads']} thread" + ("s" if made["threads"] > 1 else "")


def efficiency(made: Mapping[str, Any]) -> str:
    """Storage, memory and time of one step, float against packed (the paper's Table 5)."""
    heads = ["", "weights, GiB", "peak memory, GiB", "one step, s", "× float32", "× bfloat16", "in attention"]
    rows = [
        [
            f"`{name}` {made['bits']}" if "float" not in name else name,
            f"{row['weight_bytes'] / 2**30:.2f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            f"{row['step_seconds']:.2f}",
            f"{row['faster_than_float32']:.2f}",
            f"{row['faster_than_bfloat16']:.2f}",
            f"{row['attention_share']:.0%}",
        ]
        for name, row in made["rows"].items()
    ]
    said = f"{made['model']}, {made['tokens']} tokens, batch {made['batch']}, {_threads(made)}, {made['capability']}."
    return f"{_lines(heads, rows)}\n\n{said} `{made['command']}`\n"


def linear(made: Mapping[str, Any]) -> str:
    """The quantized linear under each scheme, as many times as fast as both floats."""
    schemes = dict.fromkeys(name.rpartition("over ")[0].rstrip(", ") for name in made["rows"][0]["ratios"])
    heads = ["model", "K → N", "M", *(scheme or "plain" for scheme in schemes)]
    shares = [said for share, said in SHARES.items() if share in made["rows"][0]]
    rows = [
        [
            row["model"],
            f"{row['k']} → {row['n']}",
            str(row["m"]),
            *(
                " / ".join(
                    [f"{row['ratios'][', '.join(filter(None, (scheme, f'over {kind}')))]:.2f}" for kind in FLOATS]
                    + [f"{row[share][scheme]:.0%}" for share in SHARES if share in row]
                )
                for scheme in schemes
            ),
        ]
        for row in made["rows"]
    ]
    figures = " / ".join(["× float32", "× bfloat16", *shares])
    said = f"{figures}, {made['bits']}, {_threads(made)}, {made['instruction_set'] or 'plain torch'}."
    return f"{_lines(heads, rows)}\n\n{said} `{made['command']}`\n"


def growth(made: Mapping[str, Any]) -> str:
    """Measured points, and what the curve through all but the last said of the last."""
    rows = []
    for name, study in made["studies"].items():
        *known, last = study["points"]
        points = ", ".join(f"{point['size']}: {point['seconds']:.3g} s" for point in known)
        rows.append(
            [
                name,
                points,
                f"{last['size']}: {study['foretold_seconds']:.3g} s",
                f"{last['seconds']:.3g} s",
                f"{study['relative_error']:+.0%}",
            ]
        )
    heads = ["cost against", "measured", "foretold", "measured", "off by"]
    return f"{_lines(heads, rows)}\n\n{made['recipe']}, {_threads(made)}. `{made['command']}`\n"


def peers(made: Mapping[str, Any]) -> str:
    """Speed over bfloat16, bytes and error of each library's linear; what could not be had, below."""
    shapes, names = made["shapes"], {name: None for shape in made["shapes"] for name in shape["rows"]}
    heads = ["", *(f"{shape['k']} → {shape['n']}, M = {shape['m']}" for shape in shapes), "bytes, of bfloat16", "error"]
    rows = []
    for name in names:
        own = [shape["rows"].get(name) for shape in shapes]
        cells = ["—" if row is None else f"{row['over_bfloat16']:.2f}×" for row in own]
        row, plain = own[0], shapes[0]["rows"]["torch bfloat16"]
        rest = ["—", "—"]
        if row is not None:
            rest = [f"{row['bytes'] / plain['bytes']:.2f}", f"{row['relative_error']:.1e}"]
        rows.append([name, *cells, *rest])
    refused = {name: why for shape in shapes for name, why in shape["refused"].items()}
    said = "".join(f"- {name} could not be had: `{why}`\n" for name, why in refused.items())
    used = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return f"{_lines(heads, rows)}\n\n{said}\n{used}; {_threads(made)}, {made['capability']}. `{made['command']}`\n"


def blocks(made: Mapping[str, Any]) -> str:
    """A block against its float selves, and what share of its time attention takes."""
    heads = ["block", "video tokens", "linears as", "× float32", "× bfloat16", "in attention (bfloat16 tokens)"]
    rows = [
        [
            row["model"],
            f"{row['tokens']:,}",
            recipe,
            *(f"{ratio:.2f}" if (ratio := row["ratios"].get(f"{recipe}, over {kind}")) else "" for kind in FLOATS),
            f"{share:.0%}" if (share := row["attention_share"].get(f"{recipe}, bfloat16")) else "",
        ]
        for row in made["rows"]
        for recipe in dict.fromkeys(name.rpartition(", over")[0] for name in row["ratios"])
    ]
    said = f"Tokens of the same dtype on both sides, {_threads(made)}, {made['instruction_set']}."
    return f"{_lines(heads, rows)}\n\n{said} `{made['command']}`\n"


def clip(made: Mapping[str, Any]) -> str:
    """Whole clips of the demos, from prompt to frames."""
    heads = ["pipeline, clips at once", "transformer", "seconds", "× float32", "× bfloat16", "of it in the transformer"]
    rows = [
        [
            f"`{study['pipeline']}`, {study['batch']}",
            name,
            f"{row['seconds']:.3f}",
            f"{row['faster_than_float32']:.2f}",
            f"{row['faster_than_bfloat16']:.2f}",
            f"{row['transformer_share']:.0%}",
        ]
        for study in made["studies"]
        for name, row in study["rows"].items()
    ]
    return f"{_lines(heads, rows)}\n\n{made['bits']}, {_threads(made)}, {made['capability']}. `{made['command']}`\n"


def learning(made: Mapping[str, Any]) -> str:
    """A step of learning, native code against plain torch."""
    heads = ["block", "tokens", "recipe", "seconds in plain torch", "natively", "×"]
    rows = [
        [
            row["model"],
            f"{row['tokens']:,}",
            recipe,
            *(f"{row['median_seconds'][f'{recipe}, {backend}']:.3f}" for backend in ("plain torch", "native")),
            f"{ratio:.2f}",
        ]
        for row in made["rows"]
        for recipe, ratio in row["ratios"].items()
    ]
    return f"{_lines(heads, rows)}\n\n{_threads(made)}, {made['instruction_set']}. `{made['command']}`\n"
