"""Calibrate one block: learn its transforms and clips against the float block, then round its weights."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2q.memory import in_chunks
from s2q.models.family import Family
from s2q.numerics.gptq import accumulate_hessian, hessian_factor
from s2q.quantization.freeze import freeze
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.learn import learn, transforms_of
from s2q.quantization.objective import BlockSample, relative_error
from s2q.quantization.schemes import scheme_for, scheme_spec
from s2q.quantization.simulate import nearest_block, simulate
from s2q.quantization.statistics import Group, watch_inputs
from s2q.recipe import Recipe
from s2q.runtime.feed_forward import fuse_gelu
from s2q.runtime.linear import QuantLinear


@dataclass(frozen=True)
class CalibratedBlock:
    """What became of a block."""

    tensors: dict[str, dict[str, Tensor]]
    """Linear (name inside the block) → its tensors, see `s2q.checkpoint`."""
    error_nearest: float | None
    """Relative error of the block's outputs with round-to-nearest at the same bits; None without samples."""
    error: float | None
    """The same for the packed weights."""
    seconds: float


def calibrate_block(
    block: nn.Module,
    family: Family,
    recipe: Recipe,
    groups: list[tuple[str, ...]],
    samples: Sequence[BlockSample],
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    start: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> CalibratedBlock:
    """Quantize the linears of `block`, which is not changed.

    Args:
        groups: the linears (names inside the block), those that share an input together.
        samples: empty for recipes that need none.
        seed: start of the rotations and order of the samples.
        on_step: called after each optimisation step.
        start: linear → tensors of another model's packed one, whose transform and clips are taken over.
    """
    started = time.perf_counter()
    simulated = simulate(block, family, recipe, groups, samples, seed, start)
    if recipe.trains:
        learn(simulated, family, recipe, samples, seed, on_step)
    hessians = _hessians(simulated, family, recipe, groups, samples)
    tensors = {}
    for group in groups:
        factor = None
        if group in hessians:
            factor = hessian_factor(hessians.pop(group), recipe.gptq.damp, recipe.gptq.act_order)
        for name in group:
            linear = simulated.get_submodule(name)
            linear.inputs.forget()
            tensors[name] = freeze(linear, factor, recipe.gptq.step_search)
    error_nearest = error = None
    if samples:
        error = relative_error(packed_block(block, family, recipe, tensors), family, samples)
        error_nearest = relative_error(nearest_block(block, family, recipe, groups), family, samples)
    return CalibratedBlock(tensors, error_nearest, error, time.perf_counter() - started)


def packed_block(block: nn.Module, family: Family, recipe: Recipe, tensors: dict[str, dict[str, Tensor]]) -> nn.Module:
    """A copy of `block` that runs in integers from the packed `tensors`."""
    packed = copy.deepcopy(block)
    for name, named in tensors.items():
        old = packed.get_submodule(name)
        spec = scheme_spec(scheme_for(recipe, family, name, old.weight.shape), old.in_features)
        new = QuantLinear(old.in_features, old.out_features, old.bias is not None, spec)
        for key, tensor in named.items():
            getattr(new, key).data = tensor.to(old.weight.device)
        if old.bias is not None:
            new.bias.data = old.bias.detach()
        packed.set_submodule(name, new)
    fuse_gelu(packed)  # as in the model that is loaded
    return packed


def _hessians(
    simulated: nn.Module, family: Family, recipe: Recipe, groups: list[Group], samples: Sequence[BlockSample]
) -> dict[Group, Tensor]:
    """GPTQ's Hessian of each shared input, after transform and quantization, over all samples: [K, K].

    With `weighted_hessian` each token counts by its λ of Eq. 11.
    """
    hessians: dict[Group, Tensor] = {}
    wanted = [group for group in groups if simulated.get_submodule(group[0]).scheme.rounding == "gptq"]

    def receive(group: Group, linear: SimulatedLinear, x: Tensor, index: int) -> None:
        weights = samples[index].weights if recipe.objective.weighted_hessian else None
        x = linear.inputs(x)
        if weights is not None and x.shape[:-1] == weights.shape:
            # Linears that see other tokens than the block's own, such as text alone, count all of theirs alike.
            x = x * weights.sqrt().unsqueeze(-1)
        x = x.flatten(0, -2)
        if group not in hessians:
            hessians[group] = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float32, device=x.device)
        in_chunks(len(x), len(x), lambda rows: accumulate_hessian(hessians[group], x[rows]))

    if wanted:
        watch_inputs(simulated, family, wanted, samples, receive)
    for transform in transforms_of(simulated):
        transform.forget()
    return hessians
