"""The comparison as a page: a picture of who is nearer, then every number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, NullFormatter

import s2q.evaluation
from s2q.comparison.summary import best_means, by_bits, cell_text, shown_measures
from s2q.evaluation.figure_style import INK, MUTED, QUANTIZED, figure_style, inline_svg, new_axes
from s2q.evaluation.metrics import THIRDS
from s2q.templating import environment

TEMPLATES = Path(__file__).parent / "templates"
STYLE = Path(s2q.evaluation.__file__).parent / "templates" / "report.css"


def _label(row: Mapping[str, Any]) -> str:
    """A variant's name with each changed field on a line of its own, for names must not push the picture aside."""
    return row["variant"].replace(":", "\n").replace("=", " = ")


def _height(rows: Sequence[Mapping[str, Any]]) -> float:
    """Inches that the rows of a figure need: all as much as the one with the longest name."""
    return max(0.34, max(0.17 * (1 + row["variant"].count(":")) for row in rows) + 0.06) * len(rows)


def nearness(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """PSNR of each variant with the standard deviation of its seeds' means, best at the top, as SVG."""
    ordered = sorted(rows, key=lambda row: row["mean"]["psnr_db"])
    with figure_style(name):
        figure, axes = new_axes(5.4, 0.7 + _height(ordered))
        for place, row in enumerate(ordered):
            mean, spread = row["mean"]["psnr_db"], row["std"]["psnr_db"]
            axes.plot([mean], [place], "o", color=QUANTIZED)
            if spread is not None:
                axes.plot([mean - spread, mean + spread], [place, place], color=QUANTIZED)
            axes.annotate(
                f"{mean:.1f}", (mean, place), (0, 5), textcoords="offset points", ha="center", color=INK, size=8
            )
        axes.set_yticks(range(len(ordered)), [_label(row) for row in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.2)
        axes.set_xlabel("PSNR to full precision, dB")
        axes.grid(axis="x", visible=False)
        label = "; ".join(f"{row['variant']} {row['mean']['psnr_db']:.2f} dB" for row in reversed(ordered))
        return inline_svg(figure, f"PSNR to full precision: {label}")


def errors_by_third(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Relative error of the latents in the early, middle and late steps, a line a variant, as SVG."""
    ordered = sorted(rows, key=lambda row: row["mean"]["latent_error_late"], reverse=True)
    with figure_style(name):
        figure, axes = new_axes(5.4, 0.7 + _height(ordered))
        for place, row in enumerate(ordered):
            values = [row["mean"][third] for third in THIRDS]
            axes.plot(values, [place] * 3, color=MUTED, linewidth=0.8)
            for value, marker in zip(values, ("<", "s", ">"), strict=True):
                axes.plot([value], [place], marker, color=QUANTIZED, markersize=5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(ordered)), [_label(row) for row in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.2)
        axes.set_xlabel("relative error of the latents: ◂ early, ■ middle, ▸ late third of the steps")
        label = "; ".join(
            f"{row['variant']} " + ", ".join(f"{third.rpartition('_')[2]} {row['mean'][third]:.2g}" for third in THIRDS)
            for row in reversed(ordered)
        )
        return inline_svg(figure, f"Error of the latents by third of the steps: {label}")


def page(made: Mapping[str, Any], title: str) -> str:
    """The summary of `s2q.comparison.summary` as one HTML file that needs no other.

    Args:
        made: with the key "command" beside those of `summary`.
    """
    templates = environment(TEMPLATES)
    templates.filters["words"] = lambda name: name.replace("_", " ")
    return templates.get_template("comparison.html.j2").render(
        title=title,
        clips=made["clips"],
        command=made["command"],
        parts=[_part(bits, rows) for bits, rows in by_bits(made)],
        style=Markup(STYLE.read_text(encoding="utf-8")),
    )


def _part(bits: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names, best = shown_measures(rows), best_means(rows)
    charts = [{"svg": nearness(rows, f"nearness-{bits}"), "caption": "Each recipe's mean over clips; the line is ± one "
               "standard deviation over calibration seeds."}]  # fmt: skip
    if all(third in row["mean"] for third in THIRDS for row in rows):
        charts.append(
            {"svg": errors_by_third(rows, f"thirds-{bits}"), "caption": "Errors grow along the steps: late ones carry "
             "what early ones began."}
        )  # fmt: skip
    for chart in charts:
        chart["svg"] = Markup(chart["svg"])
    tests = [
        {
            "variant": row["variant"],
            "rival": row["against_best_rival"]["psnr_db"]["variant"],
            "difference": f"{row['against_best_rival']['psnr_db']['difference']:+.2f}",
            "p": f"{row['against_best_rival']['psnr_db']['p']:.2g}",
        }
        for row in rows
        if "psnr_db" in row["against_best_rival"]
    ]
    full = rows[0]["against_full_precision"]
    return {
        "bits": bits,
        "names": names,
        "charts": charts,
        "tests": tests,
        "full": {name: f"{full[name]['float']:.3g}" for name in names if name in full},
        "rows": [
            {
                "variant": row["variant"],
                "seeds": row["seeds"],
                "megabytes": f"{row['quantized_bytes'] / 1e6:.2f}",
                "cells": [
                    {"text": cell_text(row, name), "best": row["mean"][name] == best.get(name)} for name in names
                ],
            }
            for row in rows
        ],
    }
