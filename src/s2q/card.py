"""The model card of a quantized model: README.md of its folder, made of what stands in the folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2q.checkpoint import PROVENANCE_NAME, QuantizationSpec, SchemeSpec
from s2q.messages import size
from s2q.templating import environment
from s2q.version import VERSION

CARD_NAME = "README.md"
_TEMPLATES = Path(__file__).parent / "templates"
# The hub's tasks, by what diffusers calls the pipelines of each.
_TAGS = {"ImageToVideo": "image-to-video", "VideoToVideo": "video-to-video"}


def model_card(
    source: str | None,
    model_class: str,
    pipeline_class: str,
    spec: QuantizationSpec,
    storage: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    part: str = "transformer",
) -> str:
    """The card as Markdown; nothing in it depends on the clock or the machine.

    Args:
        source: what the user named: a hub id, a folder, or the word of a demo. Of a folder only its name is told.
            None: a pipeline that a program had loaded itself.
        storage: as `s2q.package.Storage.to_dict` gives it.
        report: as `s2q evaluate` writes it into `report.json`; its figures are told.
        part: what the pipeline calls the model; text encoders are models of transformers, all others of diffusers.
    """
    hub_id = source if source and is_hub_id(source) else None
    name = "".join(letter for letter in Path(source or "").name if letter.isprintable() and letter not in "`[]<>|")
    templates = environment(_TEMPLATES, autoescape=False)
    templates.filters["bytes"] = size
    return templates.get_template("card.md.j2").render(
        hub_id=hub_id,
        title=name or model_class,
        origin=_origin(hub_id, name),
        recipe=spec.recipe,
        bits=spec.bits,
        version=VERSION,
        part=part,
        is_text=part.startswith("text_encoder"),
        model_class=model_class,
        pipeline_class=pipeline_class,
        tag=next((tag for words, tag in _TAGS.items() if words in pipeline_class), "text-to-video"),
        schemes=[_row(scheme) for scheme in spec.schemes],
        integers=any(scheme.act_bits is not None for scheme in spec.schemes),
        parts={name: tuple(sides) for name, sides in storage["parts"].items() if any(sides)},
        float_bytes=storage["float_bytes"],
        quantized_bytes=storage["quantized_bytes"],
        provenance=PROVENANCE_NAME,
        report=report,
        measures=[] if report is None else _measures(report),
    )


def _origin(hub_id: str | None, name: str) -> str:
    if hub_id:
        return f"[{hub_id}](https://huggingface.co/{hub_id})"
    return f"a local pipeline, `{name}`" if name else "a pipeline in memory"


def is_hub_id(source: str) -> bool:
    """Whether `source` is OWNER/NAME and no folder here."""
    owner, slash, name = source.partition("/")
    named = all(part and all(c.isascii() and (c.isalnum() or c in "-_.") for c in part) for part in (owner, name))
    return bool(slash) and named and owner not in (".", "..") and not Path(source).exists()


def _row(scheme: SchemeSpec) -> dict[str, Any]:
    def grid(bits: int, symmetric: bool, per: str, group_size: int | None) -> str:
        groups = f", groups of at most {group_size} channels" if group_size else ""
        return f"{bits} bits, {'symmetric' if symmetric else 'with zero points'}, a scale for each {per}{groups}"

    acts = "floating point"
    if scheme.act_bits is not None:
        per = "layer, stored" if scheme.input_range else "token, measured"
        acts = grid(scheme.act_bits, scheme.symmetric_acts, per, scheme.act_group_size)
    beside = {
        "a scale on each input channel": scheme.channel_scale,
        "a Kronecker transform of the input": scheme.kronecker,
        f"a Hadamard transform of blocks of {scheme.hadamard_block} channels": scheme.hadamard_block is not None,
        "a factor on the input's range": scheme.input_clip,
        f"a branch of rank {scheme.low_rank}": scheme.low_rank > 0,
    }
    return {
        "count": len(scheme.targets),
        "weights": grid(scheme.weight_bits, scheme.symmetric_weights, "output channel", scheme.group_size),
        "activations": acts,
        "beside": ", ".join(name for name, present in beside.items() if present) or "nothing",
    }


def _measures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what the report measured, in the order of its importance."""
    fidelity = report["fidelity"]
    rows = [
        ("PSNR to full precision", f"{fidelity['psnr_db']:.2f} dB"),
        ("SSIM", f"{fidelity['ssim']:.4f}"),
        ("relative error of the latents", f"{fidelity['latent_relative_mse']:.5f}"),
    ]
    names = (("motion_ratio", "motion, of full precision's"), ("flicker_ratio", "flicker, of full precision's"))
    rows += [(said, f"{fidelity[key]:.3f}") for key, said in names if fidelity.get(key) is not None]
    return rows + judged(report)


def judged(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what learned measures and VBench say of the clips, before and after where both are known."""
    learned = (report.get("learned") or {}).get("measures", {})
    rows = [(name, f"{row['float']:.4f} → {row['quantized']:.4f}") for name, row in learned.items()]
    scores = (report.get("vbench") or {}).get("scores", {})
    for dimension, score in scores.get("quantized", {}).items():
        before = scores.get("float", {}).get(dimension)
        rows.append((f"VBench {dimension}", f"{score:.2f}" if before is None else f"{before:.2f} → {score:.2f}"))
    return rows
