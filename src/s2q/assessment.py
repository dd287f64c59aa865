"""Compare a quantized transformer with its full-precision twin and write down what was lost."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from s2q.calibration.calls import as_calls, calls_by_section
from s2q.checkpoint import PROVENANCE_NAME, QuantizationSpec
from s2q.evaluation.appearance import appearance, paired
from s2q.evaluation.metrics import Pair, fidelity, measure
from s2q.evaluation.report import ClipPair, ReportFigures, TokenWeightFigure, write_report
from s2q.evaluation.sound import mean_sound, sound_measures
from s2q.evaluation.vbench import Official
from s2q.evaluation.video import visible_scale, write_mp4
from s2q.models.blocks import first_call, to_device, video_slice
from s2q.models.geometry import latent_size, token_grid
from s2q.models.pipelines import DEMOS, OpenPipeline
from s2q.official import vbench_scores
from s2q.progress import Progress, as_progress
from s2q.quantization.tokens import received_by_block, token_weights
from s2q.reuse import account, sentence
from s2q.runtime.attention import attention_of
from s2q.storage import fingerprint, read_json, remove_unfinished, write_json
from s2q.together import named, stored
from s2q.twins import Twin, make_twins
from s2q.version import VERSION
from s2q.workspace import Workspace

if TYPE_CHECKING:  # it imports models that few need
    from s2q.evaluation.learned import Scorer

REPORT_JSON, REPORT_HTML, METRICS_JSON = "report.json", "report.html", "metrics.json"
MEASURED = ("fidelity", "sound", "appearance", "learned", "vbench", "readback", "clips", "clip_seconds")
"""What of the report stands in `metrics.json` too."""
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
    reused: Mapping[str, Any] | None = None,
    scorers: "Sequence[Scorer]" = (),
    official: Official | None = None,
    official_quantized_only: bool = False,
    fps: float | None = None,
    second: tuple[nn.Module, Path] | None = None,
    progress: Progress | Callable[[str, int, int, str], None] | None = None,
) -> Evaluation:
    """Generate clips in pairs, measure, and write `metrics.json`, `report.json`, `report.html` and the clips into `out`.

    Args:
        opened: the pipeline with its full-precision transformer.
        quantized: the transformer loaded from `folder`, with `s2q.int8_attention` or without. The quantized clips are made
            with `opened.text_encoders`, too; where those are compared alone it is that of `opened`, and `folder` holds a
            text encoder.
        prompts: one pair of clips each, the n-th from seed `seed` + n; not those of calibration.
        command: shown in the report, so that it can be repeated.
        seconds: time of the stages before, if they were part of the same work.
        reused: what the quantization took from an earlier run, as `s2q.run.Quantized` has it; what the folder tells of that
            is known without it, but for the time it saved.
        scorers: learned measures, applied to both clips of each pair.
        official: an installed VBench, which then scores videos of its own prompts in `out`/vbench.
        official_quantized_only: spare the full-precision pipeline that work.
        fps: frames per second of every video written; None is the pipeline's own.
        second: the quantized `transformer_2` that works together with `quantized`, and its folder.

    Raises:
        ValueError: prompts that the pipeline cannot be called with; those of VBench are words alone.
    """
    progress, fps = as_progress(progress), fps or opened.fps
    opened.check(prompts)
    if official is not None:
        opened.check(official.prompts)
    provenance = read_json(folder / PROVENANCE_NAME) or {}
    made_with = {
        "pipeline": opened.source if opened.folder is None else str(opened.folder.resolve()),
        "quantized": fingerprint(provenance),
        "call": opened.call,
        "dtype": str(quantized.dtype),
        "device": quantized.device.type,
        "attention": attention_of(quantized)["kind"],
    }
    text = {part: model.config.quantization_config for part, model in opened.text_encoders.items()}
    if text:
        made_with["text_encoders"] = {part: fingerprint(config.to_dict()) for part, config in text.items()}
    beside, provenances = None, [provenance]
    if second is not None:
        beside = second[0].eval()
        provenances.append(read_json(second[1] / PROVENANCE_NAME) or {})
        made_with["second"] = fingerprint(provenances[1])
    Workspace.open(out / "clips", made_with)
    quantized.eval()
    remove_unfinished(out)
    twins = make_twins(opened, quantized, prompts, seed, out / "clips", progress, beside)
    measured = [
        measure(Pair(t.reference, t.candidate, t.reference_latents, t.candidate_latents, t.step_errors)) for t in twins
    ]
    sounds = [sound_measures(twin.reference_sound, twin.candidate_sound) for twin in twins]
    looks = _both(twins, lambda clip, prompt: appearance(clip))
    learned = _both(twins, lambda clip, prompt: {k: v for score in scorers for k, v in score(clip, prompt).items()})
    recipe = provenance.get("recipe", {})
    reused = reused or provenance.get("reused")
    reused = None if reused is None else account(reused, seconds)
    spent = sum(sum(twin.seconds) for twin in twins)
    report = {
        **named(provenances),
        "seed": provenance.get("seed", seed),
        "pipeline": opened.source,
        "command": command,
        "versions": _versions(),
        "storage": stored(provenances),
        "attention": attention_of(quantized),
        "text_encoders": {part: f"{config.spec.recipe} {config.spec.bits}" for part, config in text.items()},
        "fidelity": fidelity(measured),
        "sound": mean_sound(sounds),
        "appearance": paired(looks["float"], looks["quantized"]),
        "learned": _learned(scorers, learned),
        "vbench": None,
        "latent_error_by_step": [twin.step_errors for twin in twins],
        "readback": _readback(opened, twins),
        "seconds": {**(seconds or {}), "evaluation": spent},
        "clip_seconds": {
            "float": float(np.median([twin.seconds[0] for twin in twins])),
            "quantized": float(np.median([twin.seconds[1] for twin in twins])),
        },
        "reused": reused,
        "blocks": [block for block in provenance.get("blocks", []) if block["after"] is not None],
        "salience": _salience(provenance),
        "clips": [
            {
                "prompt": twin.prompt,
                "seed": twin.seed,
                **measured[index],
                "sound": sounds[index],
                "appearance": {side: scores[index] for side, scores in looks.items()},
                "learned": {side: scores[index] for side, scores in learned.items()} if scorers else None,
            }
            for index, twin in enumerate(twins)
        ],
        "notes": [
            *_notes(recipe, attention_of(quantized)["kind"]),
            *(_text_note(part, config.spec) for part, config in text.items()),
            *([] if reused is None else [sentence(reused)]),
        ],
    }
    for index, twin in enumerate(twins):
        sides = {
            "float": (twin.reference, twin.reference_sound),
            "quantized": (twin.candidate, twin.candidate_sound),
        }
        for kind, (clip, sound) in sides.items():
            write_mp4(out / "clips" / f"clip-{index:04d}-{kind}.mp4", clip, fps, visible_scale(clip), sound)
    shown = [
        ClipPair(t.prompt, t.seed, t.reference, t.candidate, t.reference_sound, t.candidate_sound)
        for t in twins[:SHOWN_CLIPS]
    ]
    figures = ReportFigures(clips=shown, token_weights=_token_figure(opened, recipe, twins[0]), fps=fps)
    _write(out, report, figures)
    if official is not None:  # hours of work: the report stands already if they are broken off
        report["vbench"] = vbench_scores(
            opened, quantized, official, out / "vbench",
            seed=seed, fps=fps, made_with=made_with, quantized_only=official_quantized_only, progress=progress,
            second=beside,
        )  # fmt: skip
        _write(out, report, figures)
    return Evaluation(report, twins)


def _write(out: Path, report: dict[str, Any], figures: ReportFigures) -> None:
    write_json(out / METRICS_JSON, {key: report[key] for key in MEASURED})
    write_json(out / REPORT_JSON, report)
    write_report(out / REPORT_HTML, report, figures)


def _both(
    twins: Sequence[Twin], score: Callable[[np.ndarray, str], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """The scores of every clip by itself: side → one dictionary a clip."""
    return {
        "float": [score(twin.reference, twin.prompt) for twin in twins],
        "quantized": [score(twin.candidate, twin.prompt) for twin in twins],
    }


def _learned(scorers: "Sequence[Scorer]", scores: Mapping[str, list[dict[str, float]]]) -> dict[str, Any] | None:
    if not scorers:
        return None
    return {
        "models": [scorer.source for scorer in scorers],
        "measures": paired(scores["float"], scores["quantized"]),
    }


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
        "prompts": [noted if isinstance(noted, str) else noted["prompt"] for noted in provenance["prompts"]],
    }


def _readback(opened: OpenPipeline, twins: list[Twin]) -> dict[str, dict[str, float]] | None:
    """What the clips show, read from their pixels: only the demo's world is simple enough for that, at its own size."""
    if opened.source not in DEMOS:
        return None
    from s2q.demo.readback import can_read, scores

    if not all(can_read(torch.from_numpy(twin.reference)) for twin in twins):
        return None
    prompts = [twin.prompt for twin in twins]
    return {
        "float": scores([torch.from_numpy(twin.reference) for twin in twins], prompts),
        "quantized": scores([torch.from_numpy(twin.candidate) for twin in twins], prompts),
    }


def _notes(recipe: Mapping[str, Any], attention: str) -> list[str]:
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
    if attention != "float":
        notes.append(f"The quantized clips were made with {attention} attention, the others with float attention.")
    return notes


def _text_note(part: str, spec: QuantizationSpec) -> str:
    return f"The quantized clips are made with a {part} quantized by {spec.recipe} to {spec.bits}, the others with a float one."


def _token_figure(opened: OpenPipeline, recipe: Mapping[str, Any], twin: Twin) -> TokenWeightFigure | None:
    """λ over the frames of the first clip, halfway through denoising, in the block whose attention is most concentrated."""
    objective = recipe.get("objective", {})
    if not objective.get("token_weights"):
        return None
    transformer, family = opened.transformer, opened.family
    first, *others = calls_by_section(opened, twin.prompt, twin.seed)
    arguments = to_device(as_calls(first.steps[len(first.steps) // 2], family)[0], transformer.device)
    grid = token_grid(transformer.config, *latent_size(family, arguments))
    video = video_slice(family, first_call(transformer, family, arguments).states)
    # Of one section of several, of history beside the clip, of frames or places alone: no block sees a whole clip.
    if others or video.stop - video.start != math.prod(grid):
        return None
    received = received_by_block(transformer, family, arguments)
    concentration = [float(_top_share(sums[-1])) for sums in received]
    block = int(np.argmax(concentration))
    weights = token_weights(received[block], objective["lambda_min"], objective["lambda_max"])[-1]
    chosen = np.linspace(0, len(twin.reference) - 1, grid[0]).round().astype(int)
    return TokenWeightFigure(
        twin.reference[chosen],
        weights[video].reshape(grid).cpu().numpy(),
        f"Block {block} of {len(received)}, where the tenth of the tokens that receive most get "
        f"{100 * concentration[block]:.0f} % of the attention; halfway through denoising. Prompt: {twin.prompt}",
    )


def _top_share(received: Tensor, share: float = 0.1) -> Tensor:
    count = max(1, round(share * len(received)))
    return received.topk(count).values.sum() / received.sum()
