"""The published methods, each a short function from bits to a `Recipe`. Nothing else in s2q knows a method's name."""

import json
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from s2q.recipe import Bits, LinearScheme, ObjectiveSpec, OptimSpec, Recipe, SamplerSpec, TransformSpec

# The modulation linears see one vector a sample, so 8-bit inputs there cost nothing and save the quality that
# fewer bits lose: docs/method.md has the measurement.
MODULATION_ACT_BITS = 8


def _modulation_act(bits: Bits) -> int | None:
    return None if bits.act is None else max(bits.act, MODULATION_ACT_BITS)


def rtn(bits: Bits) -> Recipe:
    """Round to nearest: min–max scales, no calibration. The yardstick."""
    return Recipe(
        name="rtn",
        reference="round-to-nearest",
        bits=str(bits),
        linear=LinearScheme(weight_bits=bits.weight, act_bits=bits.act),
        modulation=LinearScheme(weight_bits=bits.weight, act_bits=_modulation_act(bits)),
    )


def gptq(bits: Bits) -> Recipe:
    """GPTQ on the untransformed weights, samples spread evenly over prompts and steps."""
    return Recipe(
        name="gptq",
        reference="arXiv 2210.17323",
        bits=str(bits),
        linear=LinearScheme(weight_bits=bits.weight, act_bits=bits.act, rounding="gptq"),
        modulation=LinearScheme(weight_bits=bits.weight, act_bits=_modulation_act(bits), rounding="gptq"),
        sampler=SamplerSpec(kind="uniform"),
    )


def s2q_vdit(bits: Bits) -> Recipe:
    """S²Q-VDiT: salient samples, FlatQuant's transforms learned with token-weighted distillation, then GPTQ."""
    shared = {"transform": TransformSpec(), "learned_clip": True, "rounding": "gptq"}
    return Recipe(
        name="s2q_vdit",
        reference="arXiv 2508.04016",
        bits=str(bits),
        linear=LinearScheme(weight_bits=bits.weight, act_bits=bits.act, **shared),
        modulation=LinearScheme(weight_bits=bits.weight, act_bits=_modulation_act(bits), **shared),
        sampler=SamplerSpec(kind="salient"),
        objective=ObjectiveSpec(kind="mse", token_weights=True),
        optim=OptimSpec(),
    )


RECIPES: dict[str, Callable[[Bits], Recipe]] = {"s2q_vdit": s2q_vdit, "rtn": rtn, "gptq": gptq}


def override(base: Recipe, assignments: Sequence[str]) -> Recipe:
    """A recipe with some fields changed.

    Args:
        assignments: `path.to.field=value`, for instance `optim.epochs=5`, `sampler.kind=random`, `linear.transform=null`.

    Raises:
        ValueError: no such field, or a value that the field does not allow.
    """
    data = base.model_dump()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *parents, field = path.split(".")
        part = data
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if not equals or not isinstance(part, dict) or field not in part:
            known = ", ".join(part) if isinstance(part, dict) else ", ".join(data)
            raise ValueError(f"cannot set {assignment!r}: write FIELD=VALUE, with a field among {known}")
        try:
            part[field] = json.loads(text)
        except ValueError:
            part[field] = text
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"cannot apply {', '.join(assignments)}: {said}") from None


def get_recipe(name: str, bits: str | Bits) -> Recipe:
    """The recipe `name` at `bits`.

    Raises:
        ValueError: unknown name or bits.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: known are {', '.join(RECIPES)}")
    return RECIPES[name](Bits.parse(bits) if isinstance(bits, str) else bits)
