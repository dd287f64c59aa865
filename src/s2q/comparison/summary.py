"""From rows of clips to a table: means, spread over calibration seeds, and paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

Rows = Sequence[Mapping[str, Any]]

# Distances to the twin: whether more (+1) or less (−1) is nearer. Ratios are best at 1, appearance and read-back at
# what full precision has, so these have no direction.
DIRECTION = {
    "psnr_db": 1,
    "ssim": 1,
    "ms_ssim": 1,
    "latent_relative_mse": -1,
    "latent_error_early": -1,
    "latent_error_middle": -1,
    "latent_error_late": -1,
    "step_error": -1,
    "temporal_difference_rmse": -1,
}
# Bytes within which two variants are called equally large: scales and transforms differ a little between methods.
SAME_SIZE = 1.1
SHOWN = (*DIRECTION, "motion_ratio", "flicker_ratio", "sharpness", "noise")


@dataclass(frozen=True)
class Entry:
    """All seeds of one variant at one setting of bits."""

    variant: str
    bits: str
    seeds: int
    mean: dict[str, float]
    """Over all clips, or steps, of all seeds."""
    std: dict[str, float | None]
    """Sample standard deviation of the seeds' means; None with one seed."""
    by_prompt: dict[str, np.ndarray]
    """Mean over seeds, one a prompt."""
    quantized_bytes: int
    seconds: dict[str, float]
    """By stage of calibration, mean over seeds."""


def _numbers(rows: Rows) -> dict[str, np.ndarray]:
    names = [name for row in rows[:1] for name, value in row.items() if isinstance(value, int | float)]
    return {
        name: np.array([row[name] for row in rows], float) for name in names if all(r[name] is not None for r in rows)
    }


def entries(cells: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """One entry a variant and bits, in the order they come."""
    found = []
    for key in dict.fromkeys((cell["variant"], cell["bits"]) for cell in cells):
        own = [cell for cell in cells if (cell["variant"], cell["bits"]) == key]
        # Cells that were made by an earlier version have no errors of steps.
        measured = [_numbers(cell["clips"]) | _numbers(cell.get("steps", [])) for cell in own]
        stacked = {
            name: np.stack([one[name] for one in measured])
            for name in measured[0]
            if all(name in one for one in measured)
        }
        found.append(
            Entry(
                variant=key[0],
                bits=key[1],
                seeds=len(own),
                mean={name: float(values.mean()) for name, values in stacked.items()},
                std={
                    name: float(values.mean(1).std(ddof=1)) if len(own) > 1 else None
                    for name, values in stacked.items()
                },
                by_prompt={name: values.mean(0) for name, values in stacked.items()},
                quantized_bytes=own[0]["storage"]["quantized_bytes"],
                seconds={
                    stage: float(np.mean([cell["seconds"].get(stage, 0.0) for cell in own]))
                    for stage in own[0]["seconds"]
                },
            )
        )
    return found


def paired_p(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over prompts; 1 if no prompt differs."""
    return float(wilcoxon(one, other).pvalue) if bool((one != other).any()) else 1.0


def best_rival(entry: Entry, all_entries: Sequence[Entry], measure: str) -> Entry | None:
    """The best by `measure`, one of `DIRECTION`, of the other variants at the same bits that are not larger on disk."""
    most = SAME_SIZE * entry.quantized_bytes
    rivals = [
        other
        for other in all_entries
        if other.bits == entry.bits and other.variant != entry.variant and other.quantized_bytes <= most
    ]
    return max(rivals, key=lambda other: DIRECTION[measure] * other.mean[measure], default=None)


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says, as JSON: means, spread, and each variant against its best rival by every distance."""
    made = entries(results["cells"])
    reference = _numbers(results["float"])
    rows = []
    for entry in made:
        against = {}
        for measure in (name for name in DIRECTION if all(name in other.mean for other in made)):
            rival = best_rival(entry, made, measure)
            if rival is not None:
                against[measure] = {
                    "variant": rival.variant,
                    "difference": entry.mean[measure] - rival.mean[measure],
                    "p": paired_p(entry.by_prompt[measure], rival.by_prompt[measure]),
                }
        to_float = {
            name: {"float": float(values.mean()), "p": paired_p(entry.by_prompt[name], values)}
            for name, values in reference.items()
            if name in entry.by_prompt
        }
        rows.append(
            {
                "variant": entry.variant,
                "bits": entry.bits,
                "seeds": entry.seeds,
                "mean": entry.mean,
                "std": entry.std,
                "quantized_bytes": entry.quantized_bytes,
                "seconds": entry.seconds,
                "against_best_rival": against,
                "against_full_precision": to_float,
            }
        )
    return {"clips": len(results["float"]), "rows": rows}


def markdown(made: Mapping[str, Any]) -> str:
    """The summary as a table a setting of bits; the best mean of each distance is bold."""
    parts = []
    for bits, rows in by_bits(made):
        names, best = shown_measures(rows), best_means(rows)
        full = rows[0]["against_full_precision"]
        lines = [
            f"**{bits}**, {made['clips']} held-out clips",
            "",
            "| recipe | seeds | MB | " + " | ".join(name.replace("_", " ") for name in names) + " |",
            "|---" * (len(names) + 3) + "|",
            "| full precision | | | "
            + " | ".join(f"{full[n]['float']:.3g}" if n in full else "" for n in names)
            + " |",
        ]
        for row in rows:
            cells = []
            for name in names:
                text = cell_text(row, name)
                cells.append(f"**{text}**" if row["mean"][name] == best.get(name) else text)
            size = f"{row['quantized_bytes'] / 1e6:.2f}"
            lines.append(f"| {row['variant']} | {row['seeds']} | {size} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def by_bits(made: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """The rows of a summary at each setting of bits, in the order they come."""
    settings = dict.fromkeys(row["bits"] for row in made["rows"])
    return [(bits, [row for row in made["rows"] if row["bits"] == bits]) for bits in settings]


def best_means(rows: Rows) -> dict[str, float]:
    """The best mean of each distance that the rows are shown with."""
    names = [name for name in shown_measures(rows) if name in DIRECTION]
    return {name: max((row["mean"][name] for row in rows), key=lambda mean: DIRECTION[name] * mean) for name in names}


def cell_text(row: Mapping[str, Any], name: str) -> str:
    """Mean ± spread of one measure of a row of `summary`."""
    spread = "" if row["std"][name] is None else f" ± {row['std'][name]:.2g}"
    return f"{row['mean'][name]:.4g}{spread}"


def shown_measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that a table shows, of those that every row has."""
    readbacks = sorted(name for name in rows[0]["mean"] if name.startswith("readback_"))
    return [name for name in (*SHOWN, *readbacks) if all(name in row["mean"] for row in rows)]
