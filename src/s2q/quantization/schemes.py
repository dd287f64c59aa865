"""Which scheme a linear has, and how the checkpoint describes it."""

from collections.abc import Iterable, Sequence

from torch import nn

from s2q.checkpoint import SchemeSpec
from s2q.models.family import Family
from s2q.numerics.hadamard import hadamard_block
from s2q.quantization.statistics import Group
from s2q.quantization.transforms import rotation_factors
from s2q.recipe import LinearScheme, Recipe


def scheme_for(recipe: Recipe, family: Family, name: str, shape: Sequence[int]) -> LinearScheme:
    """How the linear `name` (inside a block) with a weight of `shape` [N, K] is quantized."""
    scheme = recipe.modulation if family.is_modulation(name) else recipe.linear
    if scheme.transform is None:
        return scheme
    return scheme.model_copy(update={"transform": scheme.transform.for_shape(*shape)})


def groups_for(recipe: Recipe, family: Family, block: nn.Module) -> list[Group]:
    """The linears of `block` that are quantized, those together that share an input and what is done to it.

    Linears that share an input but not its rotation, for some have fewer outputs than it has channels (keys of fewer heads
    under `down_rotation`), are groups of their own.
    """
    found = []
    for group in family.groups(block, recipe.keep_float):
        alike: dict[str, list[str]] = {}
        for name in group:
            scheme = scheme_for(recipe, family, name, block.get_submodule(name).weight.shape)
            alike.setdefault("none" if scheme.transform is None else scheme.transform.rotation, []).append(name)
        found += [tuple(names) for names in alike.values()]
    return found


def scheme_spec(scheme: LinearScheme, columns: int) -> SchemeSpec:
    """How the checkpoint describes `scheme`, made by `scheme_for`, for a linear of K = `columns` inputs, without targets."""
    factors = rotation_factors(scheme, columns)
    transform, acts = scheme.transform, scheme.act_bits is not None
    rotation = "none" if transform is None else transform.rotation
    signs = rotation in ("hadamard", "hadamard_blocks")
    return SchemeSpec(
        weight_bits=scheme.weight_bits,
        act_bits=scheme.act_bits,
        symmetric_weights=scheme.symmetric_weights,
        symmetric_acts=scheme.symmetric_acts,
        group_size=scheme.group_size,
        act_group_size=scheme.act_group_size if acts else None,
        channel_scale=signs or (transform is not None and transform.channel_scale),
        kronecker=factors is not None,
        hadamard_block=hadamard_block(columns, transform.block) if rotation == "hadamard_blocks" else None,
        input_clip=acts and scheme.act_clip != 1.0,
        input_range=acts and scheme.act_range == "static",
        low_rank=0 if scheme.low_rank is None else scheme.low_rank.rank,
        low_rank_on_codes=scheme.low_rank is not None and scheme.low_rank.input == "quantized",
        kronecker_factors={} if factors is None else {str(columns): factors},
        targets={},
    )


def merged(linears: Iterable[tuple[str, SchemeSpec, str]]) -> tuple[SchemeSpec, ...]:
    """The schemes of a checkpoint: linears of all widths stand under one that is the same but for their Kronecker factors.

    Args:
        linears: full name, description by `scheme_spec`, and checksum of each.
    """
    schemes: dict[str, tuple[SchemeSpec, dict[str, str], dict[str, tuple[int, int]]]] = {}
    for name, described, checksum in linears:
        key = described.model_copy(update={"kronecker_factors": {}}).model_dump_json()
        _, targets, factors = schemes.setdefault(key, (described, {}, {}))
        targets[name] = checksum
        factors |= described.kronecker_factors
    return tuple(
        described.model_copy(update={"targets": targets, "kronecker_factors": factors})
        for described, targets, factors in schemes.values()
    )
