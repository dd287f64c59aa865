"""Tables of docs/speed.md from the results of the studies of speed; results_page.py fills them in."""

from collections.abc import Mapping, Sequence
from typing import Any

FLOATS = ("float32", "bfloat16")
PLAIN = "torch bfloat16"
# What is told of a linear beside its ratios, of bfloat16 tokens.
SHARES = {
    "shares_of_peak": "of the peak of integer products",
    "shares_of_input": "of its time in transforming and quantizing",
}


def _table(heads: list[str], rows: list[list[str]], said: str, made: Mapping[str, Any]) -> str:
    """The rows, and below them what is `said` of how they were made, with the command."""
    lines = ("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])
    return "\n".join(lines) + f"\n\n{said} `{made['command']}`\n"


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
    return _table(heads, rows, said, made)


def linear(made: Mapping[str, Any]) -> str:
    """The quantized linear under each scheme, as many times as fast as both floats; and the six of a block together."""
    schemes = _schemes(made)
    heads = ["model", "K → N", "M", *(scheme or "plain" for scheme in schemes)]
    shares = [said for share, said in SHARES.items() if share in made["rows"][0]]

    def alone(row: Mapping[str, Any], scheme: str) -> list[str]:
        ratios = [f"{row['ratios'][', '.join(filter(None, (scheme, f'over {kind}')))]:.2f}" for kind in FLOATS]
        return ratios + [f"{row[share][scheme]:.0%}" for share in SHARES if share in row]

    lines = []
    for model in dict.fromkeys(row["model"] for row in made["rows"]):
        rows = [row for row in made["rows"] if row["model"] == model]
        for row in rows:
            told = [" / ".join(alone(row, scheme)) for scheme in schemes]
            lines.append([model, f"{row['k']} → {row['n']}", str(row["m"]), *told])
        for tokens in dict.fromkeys(row["m"] for row in rows):
            own = [row for row in rows if row["m"] == tokens]
            lines.append([model, "**a block's six**", str(tokens), *(f"**{cell}**" for cell in _six(own, schemes))])
    figures = " / ".join(["× float32", "× bfloat16", *shares])
    said = f"{figures}, {made['bits']}, {_threads(made)}, {made['instruction_set'] or 'plain torch'}."
    return _table(heads, lines, said, made)


def sets(made: Mapping[str, Any]) -> str:
    """A block's six linears under each scheme on each instruction set, as many times as fast as both floats on that set."""
    schemes, lines = _schemes(made), []
    for name, model, tokens in dict.fromkeys((row["instruction_set"], row["model"], row["m"]) for row in made["rows"]):
        own = [row for row in made["rows"] if (row["instruction_set"], row["model"], row["m"]) == (name, model, tokens)]
        lines.append([name, model, str(tokens), *_six(own, schemes)])
    heads = ["instruction set", "a block's six of", "M", *(scheme or "plain" for scheme in schemes)]
    return _table(heads, lines, f"× float32 / × bfloat16, W4A8, {_threads(made)}.", made)


def _schemes(made: Mapping[str, Any]) -> list[str]:
    """The schemes of `s2q bench`, the plain one as an empty string."""
    return list(dict.fromkeys(name.rpartition("over ")[0].rstrip(", ") for name in made["rows"][0]["ratios"]))


def _six(rows: Sequence[Mapping[str, Any]], schemes: Sequence[str]) -> list[str]:
    return [" / ".join(f"{_of_a_block(rows, scheme, kind):.2f}" for kind in FLOATS) for scheme in schemes]


def _of_a_block(rows: Sequence[Mapping[str, Any]], scheme: str, kind: str) -> float:
    """How many times as fast as floats of a kind are q, k, v, the attention's output and the feed-forward's two together."""
    packed = " ".join(filter(None, ("quantized", scheme, kind)))
    whole, own = (sum(_times(row) * row["median_seconds"][name] for row in rows) for name in (kind, packed))
    return whole / own


def _times(shape: Mapping[str, Any]) -> int:
    """How often a block has a linear of this shape."""
    return 4 if shape["k"] == shape["n"] else 1


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
    return _table(heads, rows, f"{made['recipe']}, {_threads(made)}.", made)


def peers(made: Mapping[str, Any]) -> str:
    """Speed of a block's six linears over bfloat16, bytes and error of each library's; what could not be had, below."""
    shapes, names = made["shapes"], {name: None for shape in made["shapes"] for name in shape["rows"]}
    blocks = list(dict.fromkeys((shape["model"], shape["m"]) for shape in shapes))
    heads = ["", *(f"{model}, M = {tokens}" for model, tokens in blocks), "bytes, of bfloat16", "error"]
    speeds, rows = [library_speeds(made, *block) for block in blocks], []
    for name in names:
        cells = [f"{own[name]:.2f}×" if name in own else "—" for own in speeds]
        shape = next(shape["rows"] for shape in shapes if name in shape["rows"])
        told = [f"{shape[name]['bytes'] / shape[PLAIN]['bytes']:.2f}", f"{shape[name]['relative_error']:.1e}"]
        rows.append([name, *cells, *told])
    refused = {name: why for shape in shapes for name, why in shape["refused"].items()}
    said = "".join(f"- {name} could not be had: `{why}`\n" for name, why in refused.items())
    used = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return _table(heads, rows, f"{said}\n{used}; {_threads(made)}, {made['capability']}.", made)


def library_speeds(made: Mapping[str, Any], model: str, tokens: int) -> dict[str, float]:
    """Linear of a library → how many times as fast as bfloat16 a block's six are, of those that all of them could be had of."""
    own = [shape for shape in made["shapes"] if (shape["model"], shape["m"]) == (model, tokens)]
    names = [name for name in own[0]["rows"] if all(name in shape["rows"] for shape in own)]
    return {name: six_seconds(own, PLAIN) / six_seconds(own, name) for name in names}


def six_seconds(shapes: Sequence[Mapping[str, Any]], name: str) -> float:
    """Seconds of a block's six linears, see `_of_a_block`."""
    return sum(_times(shape) * shape["rows"][name]["median_seconds"] for shape in shapes)


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
    return _table(heads, rows, said, made)


def attention(made: Mapping[str, Any]) -> str:
    """Int8 attention against torch's."""
    heads = ["heads of", "H × D", "tokens", *FLOATS, *(f"int8 from {kind}" for kind in FLOATS)]
    heads += [f"× {kind}" for kind in FLOATS]
    rows = [
        [
            row["model"],
            f"{row['heads']} × {row['width']}",
            f"{row['tokens']:,}",
            *(f"{row['median_seconds'][kind]:.3f} s" for kind in (*FLOATS, *(f"int8 {kind}" for kind in FLOATS))),
            *(f"{row['ratios'][kind]:.2f}" for kind in FLOATS),
        ]
        for row in made["rows"]
    ]
    return _table(heads, rows, f"{_threads(made)}, {made['instruction_set']}.", made)


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
    return _table(heads, rows, f"{made['bits']}, {_threads(made)}, {made['capability']}.", made)


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
    return _table(heads, rows, f"{_threads(made)}, {made['instruction_set']}.", made)
