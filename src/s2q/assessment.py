"""Compare a quantized transformer with its full-precision twin and write down what was lost."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from s2q.checkpoint import PROVENANCE_NAME
from s2q.evaluation.metrics import Pair, fidelity, measure
from s2q.evaluation.report import ClipPair, ReportFigures, TokenWeightFigure, write_report
from s2q.evaluation.video import visible_scale, write_mp4
from s2q.models.blocks import to_device
from s2q.models.pipelines import DEMOS, OpenPipeline
from s2q.progress import NoProgress, Progress
from s2q.quantization.tokens import received_by_block, token_weights
from s2q.storage import fingerprint, read_json, remove_unfinished, write_json
from s2q.twins import Twin, generate, make_twins
from s2q.version import VERSION
from s2q.workspace import Workspace

FPS = 8
REPORT_JSON, REPORT_HTML, METRICS_JSON = "report.json", "report.html", "metrics.json"
SHOWN_CLIPS = 8
"""The report holds at most so many clips, those of the first prompts, to stay small."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured."""

    report: dict[str, Any]
    twins: list[Twin]


def evaluate(
    opened: OpenPipeline,
    quantized: nn.Module,
    folder: Path,
    out: Path,
    *,
    prompts: Sequence[str],
    seed: int = 0,
    command: str = "",
    seconds: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Generate clips in pairs, measure, and write `metrics.json`, `report.json`, `report.html` and the clips into `out`.

    Args:
        opened: the pipeline with its full-precision transformer.
        quantized: the transformer loaded from `folder`.
        prompts: one pair of clips each, the n-th from seed `seed` + n; not those of calibration.
        command: shown in the report, so that it can be repeated.
        seconds: time of the stages before, if they were part of the same work.
    """
    provenance = read_json(folder / PROVENANCE_NAME) or {}
    made_with = {
        "pipeline": str(opened.folder.resolve()),
        "quantized": fingerprint(provenance),
        "call": opened.call,
        "dtype": str(quantized.dtype),
        "device": quantized.device.type,
    }
    Workspace.open(out / "clips", made_with)
    quantized.eval()
    remove_unfinished(out)
    twins = make_twins(opened, quantized, prompts, seed, out / "clips", progress or NoProgress())
    pairs = [Pair(t.reference, t.candidate, t.reference_latents, t.candidate_latents) for t in twins]
    recipe = provenance.get("recipe", {})
    spent = sum(sum(twin.seconds) for twin in twins)
    report = {
        "recipe": recipe.get("name", "unknown"),
        "bits": recipe.get("bits", "unknown"),
        "seed": provenance.get("seed", seed),
        "pipeline": opened.source,
        "command": command,
        "versions": _versions(),
        "storage": provenance.get("storage"),
        "fidelity": fidelity(pairs),
        "latent_error_by_step": [twin.step_errors for twin in twins],
        "readback": _readback(opened, twins),
        "seconds": {**(seconds or {}), "evaluation": spent},
        "clip_seconds": {
            "float": float(np.median([twin.seconds[0] for twin in twins])),
            "quantized": float(np.median([twin.seconds[1] for twin in twins])),
        },
        "blocks": [block for block in provenance.get("blocks", []) if block["after"] is not None],
        "salience": _salience(provenance),
        "clips": [{"prompt": t.prompt, "seed": t.seed, **measure(pair)} for t, pair in zip(twins, pairs, strict=True)],
        "notes": _notes(recipe),
    }
    for index, twin in enumerate(twins):
        for kind, clip in (("float", twin.reference), ("quantized", twin.candidate)):
            write_mp4(out / "clips" / f"clip-{index:04d}-{kind}.mp4", clip, FPS, visible_scale(clip))
    write_json(out / METRICS_JSON, {key: report[key] for key in ("fidelity", "readback", "clips", "clip_seconds")})
    write_json(out / REPORT_JSON, report)
    shown = [ClipPair(t.prompt, t.seed, t.reference, t.candidate) for t in twins[:SHOWN_CLIPS]]
    figure = _token_figure(opened, recipe, twins[0])
    write_report(out / REPORT_HTML, report, ReportFigures(clips=shown, token_weights=figure, fps=FPS))
    return Evaluation(report, twins)


def _versions() -> dict[str, str]:
    modules = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    versions = {name: module.__version__ for name, module in modules.items()}
    return {"s2q": VERSION} | versions | {"python": platform.python_version()}


def _salience(provenance: Mapping[str, Any]) -> dict[str, Any] | None:
    if not provenance.get("salience"):
        return None
    return {
        "scores": provenance["salience"],
        "timesteps": provenance["timesteps"],
        "chosen": provenance["samples"],
        "prompts": provenance["prompts"],
    }


def _readback(opened: OpenPipeline, twins: list[Twin]) -> dict[str, dict[str, float]] | None:
    """What the clips show, read from their pixels: only the demo's world is simple enough for that."""
    if opened.source not in DEMOS:
        return None
    from s2q.demo.readback import scores

    prompts = [twin.prompt for twin in twins]
    return {
        "float": scores([torch.from_numpy(twin.reference) for twin in twins], prompts),
        "quantized": scores([torch.from_numpy(twin.candidate) for twin in twins], prompts),
    }


def _notes(recipe: Mapping[str, Any]) -> list[str]:
    notes = [
        "Fidelity is measured against the full-precision clip of the same prompt and noise, not against real video."
    ]
    linear, modulation = recipe.get("linear", {}), recipe.get("modulation", {})
    if linear.get("act_bits") != modulation.get("act_bits"):
        notes.append(
            f"The modulation (adaLN) linears take {modulation.get('act_bits') or 16}-bit inputs, one vector a sample; "
            f"all other quantized linears take {linear.get('act_bits') or 16}-bit inputs."
        )
    if linear.get("act_bits") and linear["act_bits"] < 8:
        notes.append(f"{linear['act_bits']}-bit activations are held in int8 while they are multiplied.")
    return notes


def _token_figure(opened: OpenPipeline, recipe: Mapping[str, Any], twin: Twin) -> TokenWeightFigure | None:
    """λ over the frames of the first clip, halfway through denoising, in the block whose attention is most concentrated."""
    objective = recipe.get("objective", {})
    if not objective.get("token_weights"):
        return None
    arguments = _halfway_call(opened, twin)
    transformer = opened.pipe.transformer
    received = received_by_block(
        transformer, opened.family, to_device(arguments, transformer.device, transformer.dtype)
    )
    concentration = [float(_top_share(sums[-1])) for sums in received]
    block = int(np.argmax(concentration))
    weights = token_weights(received[block], objective["lambda_min"], objective["lambda_max"])[-1]
    latents = arguments[opened.family.latents]
    frames, patch = latents.shape[1], transformer.config.patch_size
    height, width = latents.shape[-2] // patch, latents.shape[-1] // patch
    video = weights[-frames * height * width :].reshape(frames, height, width)
    chosen = np.linspace(0, len(twin.reference) - 1, frames).round().astype(int)
    return TokenWeightFigure(
        twin.reference[chosen],
        video.cpu().numpy(),
        f"Block {block} of {len(received)}, where the tenth of the tokens that receive most get "
        f"{100 * concentration[block]:.0f} % of the attention; halfway through denoising. Prompt: {twin.prompt}",
    )


def _top_share(received: Tensor, share: float = 0.1) -> Tensor:
    count = max(1, round(share * len(received)))
    return received.topk(count).values.sum() / received.sum()


def _halfway_call(opened: OpenPipeline, twin: Twin) -> dict[str, Any]:
    """The transformer's arguments in the middle of the denoising of a clip."""
    calls: list[dict[str, Any]] = []
    handle = opened.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    try:
        generate(opened, twin.prompt, twin.seed)
    finally:
        handle.remove()
    return calls[len(calls) // 2]
