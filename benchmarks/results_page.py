"""Fills the tables of docs/results.md and docs/speed.md from benchmarks/results: no figure there is typed by hand.

    python benchmarks/results_page.py          # write
    python benchmarks/results_page.py --check  # status 1 if a page says anything else than the results

What stands between `<!-- FILE BITS -->` and `<!-- end -->` is the table of benchmarks/results/FILE.json at those bits, best
PSNR first, and the command that made it; in place of the bits, `seconds` is what calibration took by stage, `generalisation`
and `shorter` are the tables of generalisation.py and shorter_calibration.py, and the others those of speed_tables.py.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speed_tables

RESULTS = Path("benchmarks/results")
PAGES = (Path("docs/results.md"), Path("docs/speed.md"))
KINDS = ("linear", "sets", "efficiency", "blocks", "attention", "clip", "growth", "peers", "learning")
SPEED = {name: getattr(speed_tables, name) for name in KINDS}
PLACE = re.compile(
    rf"<!-- (?P<file>[\w.-]+) (?P<kind>W\dA\d+|seconds|generalisation|shorter|{'|'.join(SPEED)}) -->\n.*?<!-- end -->",
    re.DOTALL,
)
COLUMNS = {
    "psnr_db": ("PSNR, dB", "{:.1f}", 1.0),
    "ssim": ("SSIM", "{:.3f}", 1.0),
    "latent_relative_mse": ("error of the latents", "{:.4f}", 1.0),
    "latent_error_early": ("early steps", "{:.1e}", 1.0),
    "latent_error_late": ("late steps", "{:.1e}", 1.0),
    "step_error": ("one step, × 10⁻⁴", "{:.2f}", 1e4),
    "motion_ratio": ("motion ratio", "{:.2f}", 1.0),
    "readback_motion": ("read-back: motion", "{:.0f} %", 100.0),
    "readback_shape": ("shape", "{:.0f} %", 100.0),
}
SPREAD = ("psnr_db", "step_error")
"""Measures shown with their standard deviation over seeds."""

# Written out only once, at the head of the page: nobody reads a column of names as wide as a page.
BEFORE = "s2q_plus:gptq.act_order=false:gptq.step_search=false"
GROUPED = "linear.act_group_size=64:linear.symmetric_acts=false"
GROUPED += ":linear.transform.rotation=kronecker:linear.transform.down_rotation=hadamard_blocks"
SHORT = {f"{BEFORE}:{GROUPED}": "s2q_plus (before, in groups)", BEFORE: "s2q_plus (before)"}


def named(variant: str) -> str:
    """A variant as the tables write it."""
    for long, short in SHORT.items():
        variant = variant.replace(long, short)
    return f"`{variant}`"


def table(made: Mapping[str, Any], bits: str) -> str:
    """The rows of a summary at one setting of bits, as Markdown, and its command."""
    rows = sorted((r for r in made["rows"] if r["bits"] == bits), key=lambda row: -row["mean"]["psnr_db"])
    # Tables made before steps were measured lack that column.
    columns = {name: column for name, column in COLUMNS.items() if all(name in row["mean"] for row in rows)}
    heads = [head for head, _, _ in columns.values()]
    lines = [
        f"| {bits} | seeds | MB | {' | '.join(heads)} | against the best as small |",
        "|---" * (len(heads) + 4) + "|",
    ]
    full = rows[0]["against_full_precision"]
    cells = [form.format(full[n]["float"] * unit) if n in full else "" for n, (_, form, unit) in columns.items()]
    lines.append(f"| *full precision* | | | {' | '.join(cells)} | |")
    for row in rows:
        cells = []
        for name, (_, form, unit) in columns.items():
            spread = row["std"][name] if name in SPREAD else None
            more = "" if spread is None else f" ± {form.format(spread * unit)}"
            cells.append(form.format(row["mean"][name] * unit) + more)
        rival = row["against_best_rival"].get("psnr_db")
        against = (
            "" if rival is None else f"{rival['difference']:+.1f} dB, {named(rival['variant'])}, p = {rival['p']:.0e}"
        )
        size = f"{row['quantized_bytes'] / 1e6:.2f}"
        lines.append(f"| {named(row['variant'])} | {row['seeds']} | {size} | {' | '.join(cells)} | {against} |")
    return "\n".join(lines) + f"\n\n{made['clips']} clips. `{made['command']}`\n"


def seconds(made: Mapping[str, Any]) -> str:
    """Seconds of calibration by stage, mean over seeds, and the command."""
    stages = list(made["rows"][0]["seconds"])
    lines = [
        f"| recipe | {' | '.join(stage.replace('_', ' ') for stage in stages)} |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for row in made["rows"]:
        cells = " | ".join(f"{row['seconds'][stage]:.1f}" for stage in stages)
        lines.append(f"| `{row['variant']}` | {cells} |")
    threads = f"{made['threads']} thread" + ("s" if made["threads"] > 1 else "")
    return (
        "\n".join(lines) + f"\n\nSeconds, {threads} on a shared machine of {made['cpus']} cores. `{made['command']}`\n"
    )


def generalisation(made: Mapping[str, Any]) -> str:
    """Errors of a step on prompts seen, unseen and held out, nearest first, and the command."""
    rows = made["rows"]
    kinds = [kind for kind, ratio in rows[0]["unseen_over_seen"].items() if abs(ratio - 1) > 1e-3]
    heads = " | ".join(f"`{kind}`" for kind in kinds)
    lines = [
        f"| {made['bits']} | seeds | seen | unseen | held out | unseen over seen: {heads} |",
        "|---" * (len(kinds) + 5) + "|",
    ]
    for row in rows:
        spread = "" if row["held_out_std"] is None else f" ± {1e4 * row['held_out_std']:.2f}"
        ratios = " | ".join(f"{row['unseen_over_seen'][kind]:.2f}" for kind in kinds)
        errors = " | ".join(f"{1e4 * row[side]:.2f}" for side in ("seen", "unseen", "held_out"))
        lines.append(f"| {named(row['variant'])} | {row['seeds']} | {errors}{spread} | {ratios} |")
    return "\n".join(lines) + f"\n\nErrors times 10⁴; ten prompts a column. `{made['command']}`\n"


def shorter(made: Mapping[str, Any]) -> str:
    """What clips are worth by what was calibrated on, and the command."""
    lines = ["| calibrated on | PSNR, dB | SSIM | error of the latents | motion ratio | seconds |", "|---" * 6 + "|"]
    for row in made["rows"]:
        cells = (
            f"{row['psnr_db']:.1f} | {row['ssim']:.3f} | {row['latent_relative_mse']:.4f} | {row['motion_ratio']:.2f}"
        )
        lines.append(f"| {row['calibrated_on']} | {cells} | {row['calibration_seconds']:.0f} |")
    seeds = f"{made['seeds']} seed" + ("s" if made["seeds"] > 1 else "")
    return "\n".join(lines) + f"\n\n{made['recipe']}, {made['clips']} clips, {seeds}. `{made['command']}`\n"


def filled(text: str) -> str:
    """The page with every table as the results have it."""

    def fill(match: re.Match) -> str:
        made = json.loads((RESULTS / f"{match['file']}.json").read_text(encoding="utf-8"))
        kinds = {"seconds": seconds, "generalisation": generalisation, "shorter": shorter} | SPEED
        body = kinds[match["kind"]](made) if match["kind"] in kinds else table(made, match["kind"])
        return f"<!-- {match['file']} {match['kind']} -->\n\n{body}\n<!-- end -->"

    return PLACE.sub(fill, text)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, tell by the exit status")
    check = parser.parse_args().check
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if check and filled(text) != text:
            sys.exit(f"{page} is not what {RESULTS} says: run python benchmarks/results_page.py")
        if not check:
            page.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
