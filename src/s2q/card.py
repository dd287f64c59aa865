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


def model_card(
    source: str,
    model_class: str,
    pipeline_class: str,
    spec: QuantizationSpec,
    storage: Mapping[str, Any],
    part: str = "transformer",
) -> str:
    """The card as Markdown; nothing in it depends on the clock or the machine.

    Args:
        source: what the user named: a hub id, a folder, or the word of a demo. Of a folder only its name is told.
        storage: as `s2q.package.Storage.to_dict` gives it.
        part: what the pipeline calls the model; text encoders are models of transformers, all others of diffusers.
    """
    hub_id = source if _is_hub_id(source) else None
    name = "".join(letter for letter in Path(source).name if letter.isprintable() and letter not in "`[]<>|")
    templates = environment(_TEMPLATES, autoescape=False)
    templates.filters["bytes"] = size
    return templates.get_template("card.md.j2").render(
        hub_id=hub_id,
        title=name or model_class,
        origin=f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"a local pipeline, `{name}`",
        recipe=spec.recipe,
        bits=spec.bits,
        version=VERSION,
        part=part,
        is_text=part.startswith("text_encoder"),
        model_class=model_class,
        pipeline_class=pipeline_class,
        schemes=[_row(scheme) for scheme in spec.schemes],
        integers=any(scheme.act_bits is not None for scheme in spec.schemes),
        parts={name: tuple(sides) for name, sides in storage["parts"].items() if any(sides)},
        float_bytes=storage["float_bytes"],
        quantized_bytes=storage["quantized_bytes"],
        provenance=PROVENANCE_NAME,
    )


def _is_hub_id(source: str) -> bool:
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
        "a factor on the input's range": scheme.input_clip,
        f"a branch of rank {scheme.low_rank}": scheme.low_rank > 0,
    }
    return {
        "count": len(scheme.targets),
        "weights": grid(scheme.weight_bits, scheme.symmetric_weights, "output channel", scheme.group_size),
        "activations": acts,
        "beside": ", ".join(name for name, present in beside.items() if present) or "nothing",
    }
