"""Pictures of speed, from the results of the studies: docs/images/speed-*.png.

    python benchmarks/speed_plots.py

A picture says the same as its table in docs/speed.md, at a glance: other libraries beside ours, a block against the length of
the video, a whole model, and how cost grows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from speed_tables import FLOATS, PLAIN, library_speeds

from s2q.evaluation.figure_style import FLOAT, INK, MUTED, PRINTED, QUANTIZED, figure_style, new_axes

RESULTS, IMAGES = Path("benchmarks/results"), Path("docs/images")
BLOCK = ("CogVideoX-2B", 1024)
"""The model and the number of tokens that libraries are shown at."""
DEFAULT = "s2q_plus W4A8"
BLOCKS = {
    f"{DEFAULT}, int8 attention": (QUANTIZED, "-", "linears packed, int8 attention"),
    DEFAULT: (QUANTIZED, "--", "linears packed"),
}


def libraries(made: Mapping[str, Any]) -> Figure:
    """Speed of a block's six linears over bfloat16's, a row for each library's, the fastest at the top."""
    speeds = library_speeds(made, *BLOCK)
    ordered = sorted(speeds.keys() - {PLAIN}, key=speeds.get)
    figure, axes = new_axes(7.0, 0.9 + 0.24 * len(ordered))
    for place, name in enumerate(ordered):
        colour = PRINTED[QUANTIZED if name.startswith("s2q") else MUTED]
        axes.barh(place, speeds[name], color=colour, height=0.66)
        axes.annotate(f"{speeds[name]:.2f}", (speeds[name], place), (4, -3), textcoords="offset points", size=8)
    axes.axvline(1.0, color=PRINTED[FLOAT], linewidth=1.2)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlabel(f"times as fast as bfloat16 ({BLOCK[0]}, {BLOCK[1]:,} tokens)")
    axes.grid(axis="y", visible=False)
    return figure


def blocks(rows: Sequence[Mapping[str, Any]], instruction_set: str) -> Figure:
    """Speed of a block over its bfloat16 self against the length of the video."""
    figure, axes = new_axes(7.0, 3.4)
    tokens = [row["tokens"] for row in rows]
    for name, (colour, line, said) in BLOCKS.items():
        speeds = [row["ratios"][f"{name}, over bfloat16"] for row in rows]
        axes.plot(tokens, speeds, line, marker="o", color=PRINTED[colour], label=said)
        for place, speed in zip(tokens, speeds, strict=True):
            axes.annotate(f"{speed:.2f}", (place, speed), (0, 6), textcoords="offset points", ha="center", size=8)
    axes.axhline(1.0, color=PRINTED[FLOAT], linewidth=1.2, label="bfloat16")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"video tokens (a block of CogVideoX-2B, {DEFAULT}, 1 thread, {instruction_set})")
    axes.set_ylabel("times as fast")
    axes.legend(loc="upper left")
    return figure


def whole(made: Mapping[str, Any]) -> Figure:
    """Weights, peak memory and seconds of one step of a whole model (the paper's Figure 7)."""
    figure, names = Figure(figsize=(9.0, 2.2), layout="constrained"), list(made["rows"])
    shown = {"weight_bytes": ("weights, GiB", 2**30), "peak_bytes": ("peak memory, GiB", 2**30)}
    shown["step_seconds"] = (f"one step, {made['tokens']} tokens, s", 1)
    for axes, (key, (title, unit)) in zip(figure.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            value = made["rows"][name][key] / unit
            axes.barh(place, value, color=PRINTED[FLOAT if name in FLOATS else QUANTIZED], height=0.66)
            axes.annotate(f"{value:.2f}", (value, place), (3, -3), textcoords="offset points", size=8)
        axes.set_yticks(range(len(names)), [n if n in FLOATS else f"{n} {made['bits']}" for n in reversed(names)])
        axes.set_title(title, color=PRINTED[INK])
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
    return figure


def growth(made: Mapping[str, Any]) -> Figure:
    """Measured points, the curve through all but the last, and the last, which it foretells."""
    figure = Figure(figsize=(9.0, 2.6), layout="constrained")
    for axes, (name, study) in zip(figure.subplots(1, len(made["studies"])), made["studies"].items(), strict=True):
        sizes, seconds = ([point[key] for point in study["points"]] for key in ("size", "seconds"))
        over = np.linspace(0.0, sizes[-1], 100)
        axes.plot(over, np.polynomial.Polynomial(study["curve"])(over), color=PRINTED[MUTED], linewidth=1.2)
        axes.plot(sizes[:-1], seconds[:-1], "o", color=PRINTED[QUANTIZED])
        axes.plot(sizes[-1:], seconds[-1:], "o", color=PRINTED[QUANTIZED], fillstyle="none")
        axes.set_title(f"{name}: off by {round(100 * study['relative_error']) or 0:+} %", color=PRINTED[INK])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    return figure


def read(name: str) -> dict[str, Any]:
    """The results of a study."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=IMAGES)
    folder = parser.parse_args().images
    short, long = read("blocks"), read("blocks-long")
    with figure_style("speed", printed=True):
        figures = {
            "libraries": libraries(read("peers")),
            "blocks": blocks([*short["rows"], *long["rows"]], short["instruction_set"]),
            "whole": whole(read("efficiency-CogVideoX-2B-batch1")),
            "growth": growth(read("growth")),
        }
        for name, figure in figures.items():
            FigureCanvasAgg(figure).print_png(folder / f"speed-{name}.png", metadata={"Software": None})
            print(folder / f"speed-{name}.png")


if __name__ == "__main__":
    main()
