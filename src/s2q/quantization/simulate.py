"""Build the simulated block: every linear with its transform, ranges and branches at their start."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from s2q.models.family import Family
from s2q.numerics.lowrank import split_low_rank
from s2q.quantization.balance import initial_scale
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.objective import BlockSample
from s2q.quantization.schemes import scheme_for
from s2q.quantization.statistics import Group, InputStatistics, input_statistics
from s2q.quantization.transforms import SharedTransform
from s2q.recipe import LinearScheme, Recipe
from s2q.runtime.reference import STORED, InputTransform, transform_input

Stored = Mapping[str, Mapping[str, Tensor]]


def simulate(
    block: nn.Module,
    family: Family,
    recipe: Recipe,
    groups: list[Group],
    samples: Sequence[BlockSample],
    seed: int,
    start: Stored | None = None,
) -> nn.Module:
    """A copy of `block` whose linears are `SimulatedLinear`s as the recipe starts them, or as `start` left them.

    Args:
        groups: the linears (names inside the block), those that share an input together.
        samples: may be empty if the recipe needs none.
        seed: of the rotations and random branches.
        start: linear → tensors of the same linear in another model's checkpoint, under the same scheme.
    """
    generator = torch.Generator().manual_seed(seed)
    schemes = {
        group: scheme_for(recipe, family, group[0], block.get_submodule(group[0]).weight.shape) for group in groups
    }
    watched = [group for group in groups if _asks_inputs(schemes[group], start)]
    statistics = input_statistics(block, family, watched, samples)
    progress = [sample.progress for sample in samples]
    simulated = copy.deepcopy(block).requires_grad_(False)
    for group in groups:
        scheme = schemes[group]
        linears = [block.get_submodule(name) for name in group]
        if start is None:
            inputs = _start_transform(linears, scheme, statistics.get(group), progress, generator)
        else:
            inputs = _stored_transform(linears[0], scheme, start[group[0]], generator)
        for name, linear in zip(group, linears, strict=True):
            made = SimulatedLinear(linear, scheme, inputs)
            if scheme.low_rank is not None and (start is None or scheme.low_rank.start == "svd"):
                _start_branch(made, statistics.get(group), generator)
            if start is not None:
                made.start_from({key: tensor.to(linear.weight.device) for key, tensor in start[name].items()})
            if scheme.rounding == "adaround":
                made.start_rounding()
            simulated.set_submodule(name, made)
    return simulated


def nearest_block(block: nn.Module, family: Family, recipe: Recipe, groups: list[Group]) -> nn.Module:
    """The block rounded to nearest at the recipe's bits, the yardstick of the report."""
    schemes = {
        role: LinearScheme(weight_bits=own.weight_bits, act_bits=own.act_bits)
        for role, own in (("linear", recipe.linear), ("modulation", recipe.modulation))
    }
    return simulate(block, family, recipe.model_copy(update=schemes), groups, [], seed=0)


def _asks_inputs(scheme: LinearScheme, start: Stored | None) -> bool:
    if start is None:
        return scheme.starts_from_inputs
    return scheme.low_rank is not None and scheme.low_rank.start == "svd"


def _stored_transform(
    linear: nn.Linear, scheme: LinearScheme, stored: Mapping[str, Tensor], generator: torch.Generator
) -> SharedTransform:
    device = linear.weight.device
    inputs = SharedTransform(linear.in_features, scheme, torch.ones(linear.in_features), generator).to(device)
    tensors = (stored.get(name) for name in STORED)
    inputs.start_from(InputTransform(*(None if tensor is None else tensor.to(device) for tensor in tensors)))
    return inputs


def _start_transform(
    linears: list[nn.Linear],
    scheme: LinearScheme,
    statistics: InputStatistics | None,
    progress: list[float],
    generator: torch.Generator,
) -> SharedTransform:
    columns, device = linears[0].in_features, linears[0].weight.device
    weight_max = torch.stack([linear.weight.detach().float().abs().amax(0) for linear in linears]).amax(0)
    scale = torch.ones(columns, device=device)
    if scheme.transform is not None and scheme.transform.channel_scale:

        def error(candidate: Tensor) -> float:
            return _output_error(linears, scheme, candidate, statistics.rows(), generator)

        seen = [progress[index] for index in statistics.seen_in]
        scale = initial_scale(scheme.transform, statistics.maxima, seen, weight_max, error)
    inputs = SharedTransform(columns, scheme, scale, generator).to(device)
    if scheme.act_range == "static" and scheme.act_bits is not None:
        with torch.no_grad():
            values = transform_input(statistics.rows(), inputs.input_transform())
        inputs.range = torch.stack([values.amin(), values.amax()])
    return inputs


@torch.no_grad()
def _output_error(
    linears: list[nn.Linear], scheme: LinearScheme, scale: Tensor, rows: Tensor, generator: torch.Generator
) -> float:
    """Σ ‖x wᵀ − Q(x c) Q(w / c)ᵀ‖² with nothing but this channel scale, over the linears that share the input."""
    plain = scheme.model_copy(
        update={
            "transform": scheme.transform.model_copy(update={"rotation": "none"}),
            "low_rank": None,
            "rounding": "nearest",
            "weight_clip": "none",
            "act_range": "token",
        }
    )
    inputs = SharedTransform(len(scale), plain, scale, generator)
    total = 0.0
    for linear in linears:
        target = nn.functional.linear(rows, linear.weight.float(), None if linear.bias is None else linear.bias.float())
        total += float((SimulatedLinear(linear, plain, inputs)(rows) - target).square().sum())
    return total


@torch.no_grad()
def _start_branch(linear: SimulatedLinear, statistics: InputStatistics | None, generator: torch.Generator) -> None:
    spec = linear.scheme.low_rank
    weight = linear.inputs.on_weight(linear.weight)
    rows, columns = weight.shape
    rank = min(spec.rank, rows, columns)
    if spec.start == "zero":
        # Kaiming-uniform on one side, nothing on the other: the branch starts as nothing and can still learn.
        bound = math.sqrt(3 / columns)
        down = (torch.rand(rank, columns, generator=generator) * 2 - 1) * bound
        linear.set_branch(down.to(weight.device), torch.zeros(rows, rank, device=weight.device))
        return
    values = transform_input(statistics.rows(), linear.inputs.input_transform()).double()

    def rounded(remainder: Tensor) -> Tensor:
        return linear.rounded_weight(remainder.float())

    up, down = split_low_rank(weight, rank, rounded, values.mT @ values, spec.refits)
    linear.set_branch(down, up)
