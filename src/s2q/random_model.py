"""Models of any size with random weights, float or quantized: to measure speed and memory, never quality."""

from typing import Any

import torch
from torch import nn

from s2q.checkpoint import QuantizationSpec, SchemeSpec
from s2q.models.family import Family
from s2q.models.lookup import resolve
from s2q.numerics.kronecker import random_orthogonal
from s2q.numerics.packing import pack
from s2q.quantization.schemes import groups_for, merged, scheme_for, scheme_spec
from s2q.recipe import Recipe
from s2q.runtime.diffusers import prepare
from s2q.runtime.linear import QuantLinear


def random_spec(model: nn.Module, family: Family, recipe: Recipe) -> QuantizationSpec:
    """What `config.json` would say of `model` quantized by `recipe`; checksums are empty."""
    linears: list[tuple[str, SchemeSpec, str]] = []
    shared = []
    for block_name, block in family.blocks(model):
        for group in groups_for(recipe, family, block):
            shared += [tuple(f"{block_name}.{name}" for name in group)] if len(group) > 1 else []
            for name in group:
                shape = block.get_submodule(name).weight.shape
                described = scheme_spec(scheme_for(recipe, family, name, shape), shape[1])
                linears.append((f"{block_name}.{name}", described, ""))
    return QuantizationSpec(
        recipe=recipe.name,
        bits=recipe.bits,
        producer="s2q, random",
        schemes=merged(linears),
        shared_inputs=tuple(shared),
    )


def empty_model(
    model_class: type[nn.Module], config: dict[str, Any], recipe: Recipe | None, dtype: torch.dtype
) -> nn.Module:
    """A transformer on the meta device; with a recipe its linears are packed, without one they are float."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = model_class.from_config(config)
            if recipe is not None:
                prepare(model, random_spec(model, resolve(model), recipe))
    finally:
        torch.set_default_dtype(usual)
    return model


def fill(module: nn.Module, device: str = "cpu", seed: int = 0) -> nn.Module:
    """Move a module from the meta device to `device`, with random values that keep the size of what passes."""
    module.to_empty(device=device)
    numbers, rotations = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, QuantLinear):
            _fill_packed(part, numbers, rotations)
            continue
        for table in part.buffers(recurse=False):
            table.zero_()
        for parameter in part.parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.data.normal_(generator=numbers).mul_(parameter.shape[-1] ** -0.5)
            else:  # norms start at one; biases of one change no time
                parameter.data.fill_(1.0)
    return module.eval().requires_grad_(False)


def _fill_packed(linear: QuantLinear, numbers: torch.Generator, rotations: torch.Generator) -> None:
    for name in linear.tensor_names:
        tensor = getattr(linear, name).data
        if name == "weight_packed":
            tensor.random_(-(2**31), 2**31 - 1, generator=numbers)
        elif name == "weight_zero_point":
            # Zero, so that weights lie around it: outputs far from what a model has make its GELU slow.
            zeros = torch.zeros(tensor.shape[1], linear.out_features, dtype=torch.int8)
            tensor.copy_(pack(zeros, linear.scheme.weight_bits).mT)
        elif name == "weight_shape":
            tensor.copy_(torch.tensor([linear.out_features, linear.in_features]))
        elif name == "weight_scale":
            tensor.fill_(linear.in_features**-0.5 / 2 ** (linear.scheme.weight_bits - 2))
        elif name in ("input_left", "input_right"):
            tensor.copy_(random_orthogonal(tensor.shape[0], rotations))
        elif name.startswith("low_rank"):
            tensor.normal_(generator=numbers).mul_(0.01)
        else:
            tensor.fill_(1.0)
    if linear.bias is not None:
        linear.bias.data.zero_()


def random_model(
    model_class: type[nn.Module], config: dict[str, Any], recipe: Recipe | None, dtype: torch.dtype, seed: int = 0
) -> nn.Module:
    """A transformer from its configuration, on the CPU; the float model is never whole in memory where it is quantized."""
    return fill(empty_model(model_class, config, recipe, dtype), "cpu", seed)
