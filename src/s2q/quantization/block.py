"""Calibrate one block: learn its transforms and clips against the float block, then round its weights."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2q.checkpoint import SchemeSpec
from s2q.models.blocks import joined_tokens, replay
from s2q.models.family import Family
from s2q.numerics.gptq import accumulate_hessian
from s2q.numerics.kronecker import kronecker_factors
from s2q.quantization.freeze import freeze
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.objective import BlockSample, collate, relative_error, weighted_error
from s2q.quantization.transforms import SharedTransform
from s2q.recipe import LinearScheme, Recipe
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


def scheme_spec(scheme: LinearScheme, columns: int) -> SchemeSpec:
    """How the checkpoint describes `scheme` for a linear of K = `columns` inputs, without targets."""
    kronecker = scheme.transform is not None and scheme.transform.kronecker
    return SchemeSpec(
        weight_bits=scheme.weight_bits,
        act_bits=scheme.act_bits,
        channel_scale=scheme.transform is not None and scheme.transform.channel_scale,
        kronecker=kronecker,
        input_clip=scheme.learned_clip and scheme.act_bits is not None,
        kronecker_factors={str(columns): kronecker_factors(columns)} if kronecker else {},
        targets={},
    )


def calibrate_block(
    block: nn.Module,
    family: Family,
    recipe: Recipe,
    groups: list[tuple[str, ...]],
    samples: list[BlockSample],
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> CalibratedBlock:
    """Quantize the linears of `block`, which is not changed.

    Args:
        groups: the linears (names inside the block), those that share an input together.
        samples: empty for recipes that need none.
        seed: start of the rotations and order of the samples.
        on_step: called after each optimisation step.
    """
    started = time.perf_counter()
    simulated = _simulate(block, family, recipe, groups, samples, seed)
    if recipe.objective.kind != "none":
        _learn(simulated, family, recipe, samples, seed, on_step)
    hessians = _hessians(simulated, family, groups, samples) if recipe.uses_gptq else {}
    tensors = {}
    for group in groups:
        scheme = scheme_for(recipe, family, group[0])
        for name in group:
            simulated.get_submodule(name).inputs.forget()
            tensors[name] = freeze(simulated.get_submodule(name), scheme, hessians.get(group))
    error_nearest = error = None
    if samples:
        error = relative_error(packed_block(block, family, recipe, tensors), family, samples)
        error_nearest = relative_error(_nearest_block(block, family, recipe, groups), family, samples)
    return CalibratedBlock(tensors, error_nearest, error, time.perf_counter() - started)


def packed_block(block: nn.Module, family: Family, recipe: Recipe, tensors: dict[str, dict[str, Tensor]]) -> nn.Module:
    """A copy of `block` that runs in integers from the packed `tensors`."""
    packed = copy.deepcopy(block)
    for name, named in tensors.items():
        old = packed.get_submodule(name)
        spec = scheme_spec(scheme_for(recipe, family, name), old.in_features)
        new = QuantLinear(old.in_features, old.out_features, old.bias is not None, spec)
        for key, tensor in named.items():
            getattr(new, key).data = tensor.to(old.weight.device)
        if old.bias is not None:
            new.bias.data = old.bias.detach()
        packed.set_submodule(name, new)
    return packed


def scheme_for(recipe: Recipe, family: Family, name: str) -> LinearScheme:
    """How the linear `name` (inside a block) is quantized."""
    return recipe.modulation if family.is_modulation(name) else recipe.linear


@torch.no_grad()
def _watch_inputs(
    block: nn.Module,
    family: Family,
    groups: list[tuple[str, ...]],
    samples: list[BlockSample],
    receive: Callable[[tuple[str, ...], nn.Module, Tensor], None],
) -> None:
    """Run all samples through `block` and hand over (group, its first linear, the input) of every shared input."""
    handles = [
        block.get_submodule(group[0]).register_forward_pre_hook(
            lambda module, args, group=group: receive(group, module, args[0])
        )
        for group in groups
    ]
    try:
        for sample in samples:
            replay(block, family, sample.states, sample.sides)
    finally:
        for handle in handles:
            handle.remove()


def _input_maxima(
    block: nn.Module, family: Family, groups: list[tuple[str, ...]], samples: list[BlockSample]
) -> dict[tuple[str, ...], Tensor]:
    """Largest magnitude of each channel of each shared input over the samples, [K]."""
    maxima: dict[tuple[str, ...], Tensor] = {}

    def receive(group: tuple[str, ...], linear: nn.Module, x: Tensor) -> None:
        largest = x.abs().flatten(0, -2).amax(0).float()
        maxima[group] = torch.maximum(maxima[group], largest) if group in maxima else largest

    _watch_inputs(block, family, groups, samples, receive)
    return maxima


def _simulate(
    block: nn.Module,
    family: Family,
    recipe: Recipe,
    groups: list[tuple[str, ...]],
    samples: list[BlockSample],
    seed: int,
) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    maxima = _input_maxima(block, family, groups, samples)
    simulated = copy.deepcopy(block).requires_grad_(False)
    for group in groups:
        scheme = scheme_for(recipe, family, group[0])
        linears = [block.get_submodule(name) for name in group]
        columns, device = linears[0].in_features, linears[0].weight.device
        weight_max = torch.stack([linear.weight.detach().float().abs().amax(0) for linear in linears]).amax(0)
        input_max = maxima.get(group, torch.ones(columns, device=device))
        inputs = SharedTransform(columns, scheme, input_max, weight_max, generator).to(device)
        for name, linear in zip(group, linears, strict=True):
            simulated.set_submodule(name, SimulatedLinear(linear, scheme, inputs))
    return simulated


def _nearest_block(block: nn.Module, family: Family, recipe: Recipe, groups: list[tuple[str, ...]]) -> nn.Module:
    """The block rounded to nearest at the recipe's bits, the yardstick of the report."""
    plain = {"transform": None, "learned_clip": False, "rounding": "nearest"}
    schemes = {role: getattr(recipe, role).model_copy(update=plain) for role in ("linear", "modulation")}
    return _simulate(block, family, recipe.model_copy(update=schemes), groups, [], seed=0)


def _transforms(simulated: nn.Module) -> list[SharedTransform]:
    found = {id(m.inputs): m.inputs for m in simulated.modules() if isinstance(m, SimulatedLinear)}
    return list(found.values())


def _learn(
    simulated: nn.Module,
    family: Family,
    recipe: Recipe,
    samples: list[BlockSample],
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """AdamW with a cosine schedule on Eq. 10; the simulated block is changed in place."""
    optim = recipe.optim
    transforms = _transforms(simulated)
    matrices = [p for transform in transforms for p in transform.transform_parameters()]
    clips = [p for transform in transforms for p in transform.clip_parameters()]
    clips += [m.clip_logit for m in simulated.modules() if isinstance(m, SimulatedLinear) and m.clip_logit is not None]
    # No weight decay: it would pull scales, angles and clips to arbitrary places, not to simpler ones.
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "lr": optim.lr}, {"params": clips, "lr": optim.clip_lr}], weight_decay=0.0
    )
    steps = optim.epochs * -(-len(samples) // optim.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-3 * optim.lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(optim.epochs):
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), optim.batch_size):
            batch = collate([samples[index] for index in order[start : start + optim.batch_size]])
            output = joined_tokens(family, replay(simulated, family, batch.states, batch.sides))
            loss = weighted_error(output, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            for transform in transforms:
                transform.forget()
            on_step()


def _hessians(
    simulated: nn.Module, family: Family, groups: list[tuple[str, ...]], samples: list[BlockSample]
) -> dict[tuple[str, ...], Tensor]:
    """GPTQ's Hessian of each shared input, after transform and quantization, over all samples: [K, K]."""
    hessians: dict[tuple[str, ...], Tensor] = {}

    def receive(group: tuple[str, ...], linear: SimulatedLinear, x: Tensor) -> None:
        x = linear.inputs(x).flatten(0, -2)
        if group not in hessians:
            hessians[group] = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float32, device=x.device)
        accumulate_hessian(hessians[group], x)

    _watch_inputs(simulated, family, groups, samples, receive)
    for transform in _transforms(simulated):
        transform.forget()
    return hessians
