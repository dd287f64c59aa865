"""The published methods, each a short function from bits to a `Recipe`. Nothing else in s2q knows a method's name.

All quantize the same linears on the same budget of 40 samples, with the same bits, so that they differ in method alone;
docs/recipes.md says where this, or the architecture, makes one depart from its paper.
"""

import json
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from s2q.recipe import (
    Bits,
    GptqSpec,
    LinearScheme,
    LowRankSpec,
    ObjectiveSpec,
    OptimSpec,
    Recipe,
    SamplerSpec,
    TransformSpec,
)

# The modulation linears see one vector a sample, so 8-bit inputs there cost nothing and save the quality that
# fewer bits lose: docs/method.md has the measurement.
MODULATION_ACT_BITS = 8

DEFAULT = "s2q_plus"
"""The recipe that is meant when none is named."""

DEFAULT_BITS = "W4A8"
"""The bits that are meant when none are: as small as W4A6, as near to full precision, and faster (docs/method.md)."""

EVENLY = SamplerSpec(kind="uniform")


def _schemes(bits: Bits, modulation: dict | None = None, **shared) -> dict[str, LinearScheme]:
    """Both classes of linears under one scheme, modulation with changes of its own."""
    act = None if bits.act is None else max(bits.act, MODULATION_ACT_BITS)
    return {
        "linear": LinearScheme(weight_bits=bits.weight, act_bits=bits.act, **shared),
        "modulation": LinearScheme(weight_bits=bits.weight, act_bits=act, **{**shared, **(modulation or {})}),
    }


def rtn(bits: Bits) -> Recipe:
    """Round to nearest: min–max scales, no calibration. The yardstick."""
    return Recipe(name="rtn", reference="round-to-nearest", bits=str(bits), **_schemes(bits))


def gptq(bits: Bits) -> Recipe:
    """GPTQ on the untransformed weights, samples spread evenly over prompts and steps."""
    schemes = _schemes(bits, rounding="gptq")
    return Recipe(name="gptq", reference="arXiv 2210.17323", bits=str(bits), **schemes, sampler=EVENLY)


def smoothquant(bits: Bits) -> Recipe:
    """SmoothQuant: a fixed channel scale half way between the ranges of inputs and weights, rounded to nearest."""
    scale = TransformSpec(alpha=0.5, rotation="none", learned=False)
    schemes = _schemes(bits, transform=scale)
    return Recipe(name="smoothquant", reference="arXiv 2211.10438", bits=str(bits), **schemes, sampler=EVENLY)


def quarot(bits: Bits) -> Recipe:
    """QuaRot: Hadamard matrices with random signs, tokens clipped to 0.9 of their range, GPTQ."""
    rotation = TransformSpec(channel_scale=False, rotation="hadamard", learned=False)
    schemes = _schemes(bits, transform=rotation, act_clip=0.9, weight_clip="mse", rounding="gptq")
    return Recipe(name="quarot", reference="arXiv 2404.00456", bits=str(bits), **schemes, sampler=EVENLY)


def q_dit(bits: Bits) -> Recipe:
    """Q-DiT: asymmetric groups of 128 channels in weights and tokens, GPTQ."""
    schemes = _schemes(
        bits, group_size=128, act_group_size=128, symmetric_weights=False, symmetric_acts=False, rounding="gptq"
    )
    return Recipe(name="q_dit", reference="arXiv 2406.17343", bits=str(bits), **schemes, sampler=EVENLY)


def q_diffusion(bits: Bits) -> Recipe:
    """Q-Diffusion: one static range for all tokens, weights rounded up or down as blocks are reconstructed."""
    schemes = _schemes(
        bits,
        symmetric_weights=False,
        symmetric_acts=False,
        act_range="static",
        act_clip="learned",
        weight_clip="mse",
        rounding="adaround",
    )
    objective = ObjectiveSpec(kind="mse")
    return Recipe(
        name="q_diffusion",
        reference="arXiv 2302.04304",
        bits=str(bits),
        **schemes,
        sampler=EVENLY,
        objective=objective,
    )


def ptq4dit(bits: Bits) -> Recipe:
    """PTQ4DiT: a channel scale from salience pooled over time by Spearman's ρ, then AdaRound."""
    scale = TransformSpec(alpha=0.5, statistic="spearman", rotation="none", learned=False)
    schemes = _schemes(bits, transform=scale, weight_clip="mse", rounding="adaround")
    objective = ObjectiveSpec(kind="mse")
    return Recipe(
        name="ptq4dit", reference="arXiv 2405.16005", bits=str(bits), **schemes, sampler=EVENLY, objective=objective
    )


def vidit_q(bits: Bits) -> Recipe:
    """ViDiT-Q: static-dynamic channel balancing, a scale from the early steps and then a Hadamard matrix."""
    balance = TransformSpec(alpha=0.5, statistic="early", rotation="hadamard", learned=False)
    schemes = _schemes(bits, transform=balance, symmetric_weights=False, symmetric_acts=False)
    return Recipe(name="vidit_q", reference="arXiv 2406.02540", bits=str(bits), **schemes, sampler=EVENLY)


def q_vdit(bits: Bits) -> Recipe:
    """Q-VDiT: a trained rank-1 branch on the quantized tokens, and distillation of the frames' similarities."""
    branch = LowRankSpec(rank=1, input="quantized", start="zero")
    schemes = _schemes(bits, symmetric_weights=False, symmetric_acts=False, weight_clip="learned", low_rank=branch)
    objective = ObjectiveSpec(kind="mse", temporal=100.0)
    return Recipe(
        name="q_vdit", reference="arXiv 2505.22167", bits=str(bits), **schemes, sampler=EVENLY, objective=objective
    )


def svdquant(bits: Bits) -> Recipe:
    """SVDQuant: a searched channel scale, 32 singular directions in 16 bits, the rest in groups of 64 by GPTQ."""
    schemes = _schemes(
        bits,
        modulation={"transform": None, "low_rank": None},
        group_size=64,
        act_group_size=64,
        transform=TransformSpec(alpha="search", rotation="none", learned=False),
        low_rank=LowRankSpec(rank=32, refits=20),
        rounding="gptq",
    )
    return Recipe(name="svdquant", reference="arXiv 2411.05007", bits=str(bits), **schemes, sampler=EVENLY)


def s2q_vdit(bits: Bits) -> Recipe:
    """S²Q-VDiT: salient samples, FlatQuant's transforms learned with token-weighted distillation, then GPTQ."""
    schemes = _schemes(bits, transform=TransformSpec(), weight_clip="learned", act_clip="learned", rounding="gptq")
    return Recipe(
        name="s2q_vdit",
        reference="arXiv 2508.04016",
        bits=str(bits),
        **schemes,
        sampler=SamplerSpec(kind="salient"),
        objective=ObjectiveSpec(kind="mse", token_weights=True),
        optim=OptimSpec(),
    )


def s2q_plus(bits: Bits) -> Recipe:
    """Ours: S²Q-VDiT's learning on asymmetric weights, samples spread evenly, a third of the steps; and what the bits ask for.

    GPTQ takes columns by importance and searches the step sizes, too. Tokens of few bits are asymmetric and in groups of 64
    channels, behind a Kronecker transform but where that would cost most. At 8 bits they lose so little that Hadamard blocks
    and one step a token do as well, which cost next to nothing. What was added and left out is what docs/method.md measures;
    the faithful method is `s2q_vdit`.
    """
    few = bits.act is not None and bits.act < 8
    rotations = {"down_rotation" if few else "rotation": "hadamard_blocks"}
    schemes = _schemes(
        bits,
        transform=TransformSpec(**rotations),
        symmetric_weights=False,
        symmetric_acts=not few,
        act_group_size=64 if few else None,
        weight_clip="learned",
        act_clip="learned",
        rounding="gptq",
    )
    return Recipe(
        name="s2q_plus",
        reference="s2q",
        bits=str(bits),
        **schemes,
        gptq=GptqSpec(act_order=True, step_search=True),
        sampler=EVENLY,
        objective=ObjectiveSpec(kind="mse"),
        optim=OptimSpec(epochs=5),
    )


RECIPES: dict[str, Callable[[Bits], Recipe]] = {
    made.__name__: made
    for made in (
        s2q_vdit,
        s2q_plus,
        rtn,
        gptq,
        smoothquant,
        quarot,
        q_diffusion,
        q_dit,
        ptq4dit,
        vidit_q,
        q_vdit,
        svdquant,
    )
}


def override(base: Recipe, assignments: Sequence[str]) -> Recipe:
    """A recipe with some fields changed.

    Args:
        assignments: `path.to.field=value`, for instance `optim.epochs=5`, `sampler.kind=random`, `linear.transform=null`,
            `linear.low_rank.rank=32`, which begins a part that the recipe does not have.

    Raises:
        ValueError: no such field, or a value that the field does not allow.
    """
    data = base.model_dump()
    begun: list[dict] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *parents, field = path.split(".")
        part = data
        for parent in parents:
            if isinstance(part, dict) and parent in part and part[parent] is None:
                # A part that the recipe does not have: linear.low_rank.rank=32 begins one.
                part[parent] = {}
                begun.append(part[parent])
            part = part.get(parent) if isinstance(part, dict) else None
        if not equals or not isinstance(part, dict) or (field not in part and part not in begun):
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
