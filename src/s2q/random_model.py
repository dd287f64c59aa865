"""Models of any size with random weights, float or quantized: to measure speed and memory, never quality."""

from typing import Any

import torch
from torch import nn

from s2q.checkpoint import QuantizationSpec, SchemeSpec
from s2q.models.family import Family
from s2q.models.lookup import resolve
from s2q.numerics.kronecker import random_orthogonal
from s2q.quantization.schemes import scheme_for, scheme_spec
from s2q.recipe import Recipe
from s2q.runtime.diffusers import swap_linears
from s2q.runtime.linear import QuantLinear


def random_spec(model: nn.Module, family: Family, recipe: Recipe) -> QuantizationSpec:
    """What `config.json` would say of `model` quantized by `recipe`; checksums are empty."""
    schemes: dict[str, tuple[SchemeSpec, list[str], dict[str, tuple[int, int]]]] = {}
    shared = []
    for block_name, block in family.blocks(model):
        for group in family.groups(block, recipe.keep_float):
            shared += [tuple(f"{block_name}.{name}" for name in group)] if len(group) > 1 else []
            for name in group:
                described = scheme_spec(scheme_for(recipe, family, name), block.get_submodule(name).in_features)
                key = described.model_copy(update={"kronecker_factors": {}}).model_dump_json()
                _, targets, factors = schemes.setdefault(key, (described, [], {}))
                targets.append(f"{block_name}.{name}")
                factors |= described.kronecker_factors
    return QuantizationSpec(
        recipe=recipe.name,
        bits=recipe.bits,
        producer="s2q, random",
        schemes=tuple(
            described.model_copy(update={"targets": dict.fromkeys(targets, ""), "kronecker_factors": factors})
            for described, targets, factors in schemes.values()
        ),
        shared_inputs=tuple(shared),
    )


def fill(linear: QuantLinear, generator: torch.Generator) -> None:
    """Random codes and rotations, and scales that keep the size of what passes."""
    for name in linear.tensor_names:
        tensor = getattr(linear, name).data
        if name == "weight_packed":
            tensor.random_(-(2**31), 2**31 - 1, generator=generator)
        elif name == "weight_zero_point":
            tensor.zero_()
        elif name == "weight_shape":
            tensor.copy_(torch.tensor([linear.out_features, linear.in_features]))
        elif name == "weight_scale":
            tensor.fill_(linear.in_features**-0.5 / 2 ** (linear.scheme.weight_bits - 2))
        elif name in ("input_left", "input_right"):
            tensor.copy_(random_orthogonal(tensor.shape[0], generator))
        elif name.startswith("low_rank"):
            tensor.normal_(generator=generator).mul_(0.01)
        else:
            tensor.fill_(1.0)
    if linear.bias is not None:
        linear.bias.data.zero_()


def random_model(
    model_class: type[nn.Module], config: dict[str, Any], recipe: Recipe | None, dtype: torch.dtype, seed: int = 0
) -> nn.Module:
    """A transformer from its configuration; with a recipe its linears are packed, without one they are float.

    The float model is never whole in memory where it is quantized.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = model_class.from_config(config)
            if recipe is not None:
                swap_linears(model, random_spec(model, resolve(model), recipe))
    finally:
        torch.set_default_dtype(usual)
    generator = torch.Generator().manual_seed(seed)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for table in model.buffers():
        table.zero_()
    for module in model.modules():
        if isinstance(module, QuantLinear):
            fill(module, generator)
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.data.normal_(generator=generator).mul_(parameter.shape[-1] ** -0.5)
            else:  # norms start at one; biases of one change no time
                parameter.data.fill_(1.0)
    return model
