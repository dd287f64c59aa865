"""The report: one HTML file which opens offline, with every clip, figure and number inside it.

The page is written under a policy which forbids it any request and runs no script but its own, so what a prompt
contains can never act, and a page sent to someone else shows them exactly what was seen here.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from s2q.evaluation import plots
from s2q.evaluation.metrics import MEASURES
from s2q.evaluation.sound import Sound
from s2q.evaluation.vbench import COLUMNS
from s2q.evaluation.video import visible_scale, webm_bytes
from s2q.templating import environment

REQUIRED = ("recipe", "bits", "seed", "fidelity")
OPTIONAL = (
    "pipeline", "command", "versions", "storage", "latent_error_by_step", "readback", "seconds", "clip_seconds",
    "blocks", "salience", "clips", "notes", "appearance", "learned", "vbench", "sound",
)  # fmt: skip
_STORAGE = ("float_bytes", "quantized_bytes", "bits_per_block_weight", "parts")
_TEMPLATES = Path(__file__).parent / "templates"
_MISSING = "\N{EN DASH}"


@dataclass(frozen=True, eq=False)
class ClipPair:
    """One prompt and seed, generated twice.

    Attributes:
        reference, candidate: uint8 [F, H, W, 3], full precision and quantized, of the same shape.
        reference_sound, candidate_sound: what is heard beside each.
    """

    prompt: str
    seed: int
    reference: np.ndarray
    candidate: np.ndarray
    reference_sound: Sound | None = None
    candidate_sound: Sound | None = None

    def __post_init__(self) -> None:
        if self.reference.shape != self.candidate.shape:
            raise ValueError(
                f"the clips of {self.prompt!r} differ in shape: {self.reference.shape} and {self.candidate.shape}"
            )


@dataclass(frozen=True, eq=False)
class TokenWeightFigure:
    """What the token weights look like on one clip.

    Attributes:
        frames: uint8 [f, H, W, 3], one for each latent frame.
        weights: float [f, h, w], one for each token.
        caption: what is shown, in words.
    """

    frames: np.ndarray
    weights: np.ndarray
    caption: str


@dataclass(frozen=True, eq=False)
class ReportFigures:
    """The pictures of a report, which its JSON does not hold.

    Attributes:
        clips: shown in this order; the n-th belongs to the n-th entry of the report's ``clips``.
        fps: frames per second at which the clips were made.
    """

    clips: list[ClipPair] = field(default_factory=list)
    token_weights: TokenWeightFigure | None = None
    fps: float = 8.0


def _filled(data: Mapping[str, Any] | None, keys: tuple[str, ...]) -> dict[str, Any]:
    """``data`` with ``None`` for every key it lacks, so that the template asks one way whether a value is there."""
    return {**dict.fromkeys(keys), **(data or {})}


def _number(value: float | None, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals and a true minus sign, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _significant(value: float | None, digits: int = 3) -> str:
    return _MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def _change(value: float | None, digits: int | None, signed: bool = True) -> str:
    """A difference with ``digits`` decimals (None: two figures), and a plus or a true minus where it is ``signed``."""
    if value is None or not math.isfinite(value):
        return _MISSING
    text = f"{value:.2g}" if digits is None else f"{value:.{digits}f}"
    plus = "+" if signed and value > 0 else ""
    return plus + text.replace("-", "\N{MINUS SIGN}", 1 if value < 0 else 0)


def _data_uri(clip: np.ndarray, fps: float, sound: Sound | None) -> str:
    video = webm_bytes(clip, fps, visible_scale(clip), sound)
    return "data:video/webm;base64," + base64.b64encode(video).decode("ascii")


def _clips(report: Mapping[str, Any], figures: ReportFigures) -> list[dict[str, Any]]:
    """One card for each pair; its numbers only where the report's entry is certainly about the same clip."""
    entries = report["clips"] or []
    cards = []
    for index, pair in enumerate(figures.clips):
        entry = entries[index] if index < len(entries) else {}
        if (entry.get("prompt", pair.prompt), entry.get("seed", pair.seed)) != (pair.prompt, pair.seed):
            raise ValueError(
                f"clip {index + 1} of the figures is {pair.prompt!r} with seed {pair.seed}, but of the report "
                f"{entry.get('prompt')!r} with seed {entry.get('seed')}: both must be in the same order"
            )
        cards.append(
            {
                "prompt": pair.prompt,
                "seed": pair.seed,
                "numbers": _filled(entry, MEASURES),
                "sound": entry.get("sound"),
                "heard": pair.reference_sound is not None,
                "width": pair.reference.shape[2],
                "height": pair.reference.shape[1],
                "reference": _data_uri(pair.reference, figures.fps, pair.reference_sound),
                "candidate": _data_uri(pair.candidate, figures.fps, pair.candidate_sound),
            }
        )
    return cards


def _charts(report: Mapping[str, Any], figures: ReportFigures) -> dict[str, Markup]:
    """Every figure whose data is there, by name. The SVG comes from :mod:`plots`, which escapes what it is given."""
    charts: dict[str, str] = {}
    if errors := report["latent_error_by_step"]:
        charts["latent_error"] = plots.latent_error(errors)
    psnr = [clip.get("psnr_db") for clip in report["clips"] or ()]
    if psnr and None not in psnr:  # a gap would shift the numbers of the clips after it
        charts["psnr"] = plots.psnr_strip(psnr)
    if blocks := report["blocks"]:
        charts["blocks"] = plots.block_errors(blocks)
    if parts := report["storage"]["parts"]:
        charts["storage"] = plots.storage_parts(parts)
    if seconds := report["seconds"]:
        charts["seconds"] = plots.stage_seconds(seconds)
    if salience := report["salience"]:
        charts["salience"] = plots.salience_map(salience["scores"], salience["timesteps"], salience["chosen"])
    if tokens := figures.token_weights:
        charts["tokens"] = plots.token_weights(tokens.frames, tokens.weights)
    return {name: Markup(svg) for name, svg in charts.items()}


def _readback(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows (what, full precision, quantized) in fractions, and the mean change in percentage points."""
    readback = report["readback"] or {}
    before, after = readback.get("float") or {}, readback.get("quantized") or {}
    rows = [(name, before[name], after[name]) for name in before if name in after]
    if not rows:
        return None
    means = (sum(row[1] for row in rows) / len(rows), sum(row[2] for row in rows) / len(rows))
    return {"rows": rows, "means": means, "points": 100 * (means[1] - means[0])}


_OWN_SCORES = {
    "sharpness": ("Sharpness", "variance of the Laplacian; blur lowers it"),
    "contrast": ("Contrast", "deviation of the grey levels"),
    "colourfulness": ("Colourfulness", "Hasler and Süsstrunk; 0 is grey"),
    "noise": ("Noise", "Immerkær's estimate, in grey levels"),
    "clipsim": ("CLIPSIM", "prompt and frames agree, by CLIP"),
    "clip_temp": ("CLIP-Temp", "neighbouring frames agree, by CLIP"),
    "clipsim_evalcrafter": ("CLIPSIM, EvalCrafter's way", "as printed in papers: CLIP on unnormalised frames"),
    "clip_temp_evalcrafter": ("CLIP-Temp, EvalCrafter's way", "as printed in papers: CLIP on unnormalised frames"),
    "dino_consistency": ("Subject consistency", "frames agree with the one before and the first, by DINO"),
    "aesthetic_score": ("Aesthetic score", "a linear head over CLIP, 0 to 1"),
}


def _own_scores(rows: Mapping[str, Mapping[str, float]] | None) -> list[dict[str, Any]]:
    """Scores which a clip has by itself, those the page has words for: what it is, both means, the paired change."""
    keys = ("float", "quantized", "difference", "difference_std")
    return [
        {"name": name, "what": what, **_filled(rows[key], keys)}
        for key, (name, what) in _OWN_SCORES.items()
        if rows and key in rows
    ]


def _vbench(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns as the paper prints them, and one row of scores for each transformer that was scored."""
    found = report["vbench"] or {}
    scores = found.get("scores") or {}
    sides = [
        (side, name) for side, name in (("float", "Full precision"), ("quantized", report["bits"])) if side in scores
    ]
    if not sides:
        return None
    rows = [(name, [scores[side].get(dimension) for dimension in COLUMNS]) for side, name in sides]
    titles = [(column, dimension.replace("_", " ")) for dimension, column in COLUMNS.items()]
    return {"titles": titles, "rows": rows, **_filled(found, ("version", "videos", "fps"))}


def _chosen_prompts(report: Mapping[str, Any]) -> list[tuple[int, str, int]]:
    """(row number from 1, prompt, chosen samples) of every prompt of the salience map."""
    salience = report["salience"] or {}
    counts = [0] * len(salience.get("prompts") or [])
    for row, _ in salience.get("chosen") or []:
        if row < len(counts):
            counts[row] += 1
    return [(index + 1, prompt, counts[index]) for index, prompt in enumerate(salience.get("prompts") or [])]


def render_report(report: Mapping[str, Any], figures: ReportFigures) -> str:
    """The page as text; the same text for the same input. See :func:`write_report`."""
    missing = [key for key in REQUIRED if key not in report]
    if missing:
        raise ValueError(f"the report lacks {', '.join(missing)}; it must have {', '.join(REQUIRED)}")
    report = _filled(report, OPTIONAL)
    report["storage"] = _filled(report["storage"], _STORAGE)
    report["fidelity"] = _filled(report["fidelity"], (*MEASURES, "psnr_db_std", "ms_ssim_scales", "clips"))
    templates = environment(_TEMPLATES)
    templates.filters.update(
        number=_number, change=_change, significant=_significant, bytes=plots.human_bytes, duration=plots.human_seconds
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return templates.get_template("report.html.j2").render(
        report=report,
        storage=report["storage"],
        fidelity=report["fidelity"],
        clips=_clips(report, figures),
        charts=_charts(report, figures),
        readback=_readback(report),
        appearance=_own_scores(report["appearance"]),
        learned=_own_scores((report["learned"] or {}).get("measures")),
        vbench=_vbench(report),
        chosen_prompts=_chosen_prompts(report),
        token_caption=figures.token_weights.caption if figures.token_weights else "",
        fps=figures.fps,
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
    )


def write_report(path: Path, report: Mapping[str, Any], figures: ReportFigures) -> None:
    """Write one self-contained HTML file; whoever opens ``path`` meanwhile sees the old page or the new, never half.

    Args:
        path: the file, replaced where it exists.
        report: plain JSON data. ``recipe``, ``bits``, ``seed`` and ``fidelity`` must be there; a section whose data
            is missing is left out, and keys which the page does not know are ignored. Read-back scores are fractions.
        figures: clips and pictures.
    """
    path = Path(path)
    page = render_report(report, figures)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        umask = os.umask(0)  # mkstemp makes the file private; a report is as readable as any file
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
