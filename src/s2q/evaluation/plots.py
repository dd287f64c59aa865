"""The figures of the report. Each function returns an ``<svg>`` element as text (see :mod:`.figure_style`).

Widths are chosen so that the letters stay readable when a page shows a figure at the width of a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from s2q.evaluation.figure_style import FLOAT, GRID, HEAT, INK, MUTED, QUANTIZED, figure_style, inline_svg, new_axes

_WIDTH = 4.8
_ROW = 0.27
_SHOWN_FRAMES = 6


def human_bytes(count: float) -> str:
    """Bytes in the largest binary unit which leaves at least one: ``1536 -> 1.5 KiB``."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while abs(count) >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    unit = units[0]
    digits = 0 if unit == "bytes" or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {unit}"


def human_seconds(seconds: float) -> str:
    """A duration to about two figures: ``0.4 s``, ``42 s``, ``3 min 10 s``, ``2 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart of horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def latent_error(by_step: Sequence[Sequence[float]]) -> str:
    """Relative error of the latents after each denoising step: the mean over clips, inside the band from best to worst.

    Args:
        by_step: [clips][T] floats, ``|a - b|^2 / |a|^2``.
    """
    errors = np.asarray(by_step, dtype=np.float64)
    steps = np.arange(1, errors.shape[1] + 1)
    with figure_style("latent-error"):
        figure, axes = new_axes(_WIDTH, 2.7)
        axes.fill_between(steps, errors.min(0), errors.max(0), color=QUANTIZED, alpha=0.2, linewidth=0)
        axes.plot(steps, errors.mean(0), color=QUANTIZED, marker="o" if len(steps) <= 30 else "", markersize=3.5)
        axes.annotate(
            f"{errors[:, -1].mean():.2g}",
            (steps[-1], errors[:, -1].mean()),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
        axes.set(xlabel="denoising step", ylabel="relative squared error", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return inline_svg(
            figure,
            f"Line chart over {len(steps)} denoising steps, mean of {len(errors)} clips with the range between them: "
            f"the mean relative latent error ends at {errors[:, -1].mean():.2g}.",
        )


def psnr_strip(values: Sequence[float]) -> str:
    """PSNR of each clip as a numbered dot, and the mean as a line.

    Args:
        values: [clips] dB, in the order in which the clips are shown.
    """
    psnr = np.asarray(values, dtype=np.float64)
    with figure_style("psnr"):
        figure, axes = new_axes(_WIDTH, 2.7)
        numbers = np.arange(1, len(psnr) + 1)
        mean = psnr.mean()
        axes.axhline(mean, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(numbers, mean, psnr, color=QUANTIZED, linewidth=1, alpha=0.5)
        axes.plot(numbers, psnr, "o", color=QUANTIZED, markersize=5.5)
        axes.annotate(
            f"mean {mean:.1f}", (1, mean), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", color=MUTED,
        )  # fmt: skip
        axes.set(xlabel="clip", ylabel="PSNR, dB", xlim=(0.4, len(psnr) + 0.6))
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        return inline_svg(
            figure,
            f"Dot chart of the PSNR of {len(psnr)} clips: from {psnr.min():.1f} to {psnr.max():.1f} dB, "
            f"mean {mean:.1f} dB.",
        )


def block_errors(blocks: Sequence[Mapping]) -> str:
    """Output error of every block before and after distillation, on a log scale.

    Args:
        blocks: in order, each with ``name``, ``before`` and ``after`` (mean squared errors, not negative).
    """
    ends = np.array([[block["before"], block["after"]] for block in blocks], dtype=np.float64)
    floor = ends[ends > 0].min() / 10 if (ends > 0).any() else 1e-12  # a log scale has no place for an exact zero
    before, after = np.maximum(ends, floor).T
    rows = np.arange(len(blocks))
    with figure_style("blocks"):
        figure, axes = new_axes(_WIDTH, 1.0 + _ROW * len(blocks))
        axes.barh(rows, after - before, left=before, height=0.34, color=QUANTIZED, alpha=0.28)
        axes.plot(
            before, rows, "o", markersize=5.5, markerfacecolor="none", markeredgecolor=FLOAT,
            markeredgewidth=1.6, label="before",
        )  # fmt: skip
        axes.plot(after, rows, "o", markersize=5.5, color=QUANTIZED, label="after")
        axes.set_xscale("log")
        # Room for at least one decade, so that some tick has a number and small gains look small.
        low, high = min(before.min(), after.min()) / 1.4, max(before.max(), after.max()) * 1.4
        middle, reach = (low * high) ** 0.5, max((high / low) ** 0.5, 10**0.55)
        axes.set_xlim(middle / reach, middle * reach)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("relative squared error of the block's output")
        _rows(axes, [str(block["name"]) for block in blocks])
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2)
        return inline_svg(
            figure,
            f"Error of {len(blocks)} blocks before and after distillation: the error of the median block is "
            f"{np.median(after / before):.2g} times what it was.",
        )


def storage_parts(parts: Mapping[str, Sequence[float]]) -> str:
    """Bytes of every part of the model before and after.

    Args:
        parts: name -> (bytes before, bytes after).
    """
    before, after = np.array(list(parts.values()), dtype=np.float64).T
    rows = np.arange(len(parts))
    with figure_style("storage"):
        figure, axes = new_axes(_WIDTH, 0.8 + 1.6 * _ROW * len(parts))
        for shift, values, style, label in (
            (-0.19, before, {"facecolor": "none", "edgecolor": FLOAT, "linewidth": 1.4}, "full precision"),
            (0.19, after, {"facecolor": QUANTIZED}, "quantized"),
        ):
            axes.barh(rows + shift, values, height=0.3, label=label, **style)
            for row, value in zip(rows, values, strict=True):
                axes.annotate(
                    human_bytes(value) if value else "none", (value, row + shift), xytext=(4, 0),
                    textcoords="offset points", va="center", fontsize=8.5, color=INK if value else MUTED,
                )  # fmt: skip
        axes.set_xlim(0, max(before.max(), after.max(), 1) * 1.18)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        _rows(axes, list(parts))
        figure.legend(loc="outside upper left", ncols=2)
        return inline_svg(
            figure,
            "Bytes by part of the model: "
            + "; ".join(f"{name} {human_bytes(a)} before, {human_bytes(b)} after" for name, (a, b) in parts.items())
            + ".",
        )


def stage_seconds(seconds: Mapping[str, float]) -> str:
    """Seconds spent in every stage, in order, as bars with their values.

    Args:
        seconds: name -> seconds.
    """
    values = np.array(list(seconds.values()), dtype=np.float64)
    with figure_style("seconds"):
        figure, axes = new_axes(_WIDTH, 0.35 + _ROW * len(values))
        axes.barh(range(len(values)), values, height=0.5, color=QUANTIZED)
        for row, value in enumerate(values):
            axes.annotate(
                human_seconds(value), (value, row), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=8.5,
            )  # fmt: skip
        axes.set_xlim(0, max(values.max(), 1e-9) * 1.25)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        _rows(axes, [name.replace("_", " ") for name in seconds])
        return inline_svg(
            figure, "Time by stage: " + ", ".join(f"{n} {human_seconds(s)}" for n, s in seconds.items()) + "."
        )


def salience_map(scores: Sequence[Sequence[float]], timesteps: Sequence[float], chosen: Sequence[Sequence[int]]) -> str:
    """Salience of every candidate sample, with the chosen ones marked.

    Args:
        scores: [P][T] floats.
        timesteps: [T], the diffusion timestep of each column.
        chosen: pairs (prompt row, column).
    """
    values = np.asarray(scores, dtype=np.float64)
    prompts, steps = values.shape
    width = min(9.0, max(_WIDTH, 1.2 + 0.19 * steps))
    with figure_style("salience"):
        figure, axes = new_axes(width, min(6.0, 1.1 + 0.2 * prompts))
        image = axes.imshow(values, cmap=HEAT, aspect="auto", interpolation="none")
        rows, columns = np.array(chosen, dtype=int).reshape(-1, 2).T
        cell = min((width - 1.3) * 72 / steps, min(4.6, 0.2 * prompts) * 72 / prompts)
        # White with a dark rim is seen on every colour of the map.
        for colour, stroke in (("black", 2.6), ("white", 1.3)):
            axes.plot(
                columns, rows, "o", markersize=max(2.0, min(6.5, 0.5 * cell)), markerfacecolor="none",
                markeredgecolor=colour, markeredgewidth=stroke,
            )  # fmt: skip
        axes.set(xlabel="timestep, from noise to clip", ylabel="prompt")
        shown = np.unique(np.linspace(0, steps - 1, min(steps, 8)).round().astype(int))
        axes.set_xticks(shown, [f"{timesteps[step]:.0f}" for step in shown])
        listed = np.unique(np.linspace(0, prompts - 1, min(prompts, 12)).round().astype(int))
        axes.set_yticks(listed, [str(row + 1) for row in listed])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02).outline.set_visible(False)
        return inline_svg(
            figure, f"Heat map of {prompts} prompts by {steps} timesteps; {len(rows)} chosen samples are circled."
        )


def token_weights(frames: np.ndarray, weights: np.ndarray) -> str:
    """Frames above, and beneath each the weights of its tokens. At most six frames, evenly spread.

    Args:
        frames: uint8 [f, H, W, 3], one for each latent frame.
        weights: float [f, h, w], one for each token.
    """
    frames, weights = np.asarray(frames), np.asarray(weights, dtype=np.float64)
    if len(frames) != len(weights):
        raise ValueError(f"{len(frames)} frames but weights for {len(weights)}: there must be one frame for each")
    shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _SHOWN_FRAMES)).round().astype(int))
    with figure_style("tokens"):
        height, width = frames.shape[1:3]
        side = _WIDTH * 1.4 / len(shown)
        figure = Figure(
            figsize=(side * len(shown) + 0.6, 2 * side * min(1.4, height / width) + 0.3), layout="constrained"
        )
        grid = figure.subplots(2, len(shown), squeeze=False)
        for column, index in enumerate(shown):
            grid[0, column].imshow(frames[index], interpolation="none")
            image = grid[1, column].imshow(
                weights[index], cmap=HEAT, vmin=weights.min(), vmax=weights.max(), interpolation="none",
                extent=(0, width, height, 0),
            )  # fmt: skip
            grid[0, column].set_title(f"frame {index + 1}", color=MUTED, fontsize=9)
            for axes in grid[:, column]:
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                axes.spines[:].set(visible=True, color=GRID)
        figure.colorbar(image, ax=grid, fraction=0.03, pad=0.01).outline.set_visible(False)
        return inline_svg(
            figure,
            f"{len(shown)} of {len(frames)} frames, and under each a heat map of its {weights.shape[1]} by "
            f"{weights.shape[2]} token weights, from {weights.min():.2g} to {weights.max():.2g}.",
        )
