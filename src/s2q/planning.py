"""What quantizing a pipeline would do and cost, from its configuration alone: no weights are loaded."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from s2q.checkpoint import tensor_layout
from s2q.expected_seconds import expected_seconds, token_width
from s2q.models.family import Family
from s2q.models.folder import PARTS
from s2q.models.geometry import Geometry, geometry, vae_factors
from s2q.models.lookup import resolve
from s2q.models.pipelines import default_call, locate_configurations
from s2q.models.stored import ASSUMED, stored_bytes
from s2q.quantization.schemes import groups_for, scheme_for, scheme_spec
from s2q.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The plan of one quantization."""

    model: str
    recipe: str
    bits: str
    targets: dict[str, tuple[int, int]]
    """Linear → (N, K) of everything that is quantized."""
    kept: dict[str, str]
    """Linear that stays in floating point → why."""
    parameters: int
    float_bytes: int
    float_bytes_assumed: bool
    """Whether neither weights nor configurations tell how a weight is stored; then two bytes are assumed."""
    quantized_bytes: int
    bits_per_block_weight: float
    tokens: int
    """S of one guidance branch in self-attention, with the text where it takes part in that."""
    seconds: dict[str, float]
    """Estimate by stage on this machine."""
    memory_bytes: int
    """Estimate of the most that calibration holds at once on its device, the pipeline's other models apart."""
    streamed_memory_bytes: int
    """The same with `--stream`: blocks and hidden states stay on disk."""
    disk_bytes: int
    """Estimate of trajectories, token weights and blocks in the work folder."""
    streamed_disk_bytes: int
    """The same with `--stream`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-like."""
        return asdict(self)


def plan(
    source: str | Path,
    recipe: Recipe,
    call: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    part: str = PARTS[0],
    timed: bool = True,
) -> Plan:
    """Plan the quantization of a pipeline.

    Args:
        source: a folder, a hub id or the word of a demo, see `open_pipeline`; configurations are enough, and of a hub id
            nothing else is fetched. A `Path` is taken as it is: it may lack all that is not planned with.
        call: arguments of the pipeline's calls; steps and size are taken from it, else from the configuration.
        dtype: of the pipeline while it is recorded and its blocks are replayed.
        part: which of the pipeline's transformers is meant.
        timed: whether time is estimated, which takes a second or two; else `seconds` is empty.

    Raises:
        PipelineError: see `locate_configurations`.
    """
    folder = source if isinstance(source, Path) else locate_configurations(source)[0]
    call = default_call(str(source), folder) | dict(call or {})
    config = json.loads((folder / part / "config.json").read_text())
    model_class = getattr(diffusers, config["_class_name"])
    with torch.device("meta"):
        model = model_class.from_config(config)
    family = resolve(model)
    index = folder / "model_index.json"
    if index.is_file():
        family = replace(family, pipeline=json.loads(index.read_text())["_class_name"])
    sizes = geometry(family, model.config, _factors(folder / "vae" / "config.json"), call)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    parameters = sum(math.prod(shape) for shape in shapes.values())
    stored = stored_bytes(folder / part, "diffusion_pytorch_model", parameters)
    element = stored or ASSUMED
    targets, packed, extra = _targets(model, family, recipe)
    block_weights = sum(n * k for n, k in targets.values())
    states = _states(model, family, sizes) * dtype.itemsize
    disk = _disk(recipe, family, model.config, sizes, len(family.blocks(model)), dtype.itemsize) + packed + extra
    working = _working(model, family, recipe, states // dtype.itemsize)
    return Plan(
        model=config["_class_name"],
        recipe=recipe.name,
        bits=recipe.bits,
        targets=targets,
        kept=_kept(model, family, targets),
        parameters=parameters,
        float_bytes=parameters * element,
        float_bytes_assumed=stored is None,
        quantized_bytes=(parameters - block_weights) * element + packed + extra,
        bits_per_block_weight=8 * packed / block_weights,
        tokens=sizes.tokens,
        seconds=expected_seconds(model, family, recipe, sizes, device, dtype) if timed else {},
        memory_bytes=parameters * dtype.itemsize + 2 * _samples(recipe) * states + working,
        streamed_memory_bytes=_outside(model, family, parameters) * dtype.itemsize + 2 * states + working,
        disk_bytes=disk,
        streamed_disk_bytes=disk + (2 + recipe.optim.propagate_error) * _samples(recipe) * states,
    )


def _targets(model: nn.Module, family: Family, recipe: Recipe) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Shapes of the quantized linears, bytes of their codes, bytes of their scales and transforms."""
    targets, packed, extra = {}, 0, 0
    for block_name, block in family.blocks(model):
        for group in groups_for(recipe, family, block):
            for name in group:
                linear = block.get_submodule(name)
                rows, columns = linear.out_features, linear.in_features
                targets[f"{block_name}.{name}"] = (rows, columns)
                layout = tensor_layout(
                    rows, columns, scheme_spec(scheme_for(recipe, family, name, (rows, columns)), columns)
                )
                for key, (shape, dtype) in layout.items():
                    size = math.prod(shape) * dtype.itemsize
                    packed += size if key == "weight_packed" else 0
                    extra += size if key != "weight_packed" else 0
    return targets, packed, extra


def _kept(model: nn.Module, family: Family, targets: Mapping[str, Any]) -> dict[str, str]:
    inside = tuple(f"{name}." for name, _ in family.blocks(model))
    reasons = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in targets:
            kept_by_recipe = name.startswith(inside)
            reasons[name] = (
                "the recipe's keep_float"
                if kept_by_recipe
                else "outside the blocks: small, and all of the video passes"
            )
    return reasons


def _factors(path: Path) -> tuple[int, int]:
    """See `vae_factors`; those of CogVideoX, Wan 2.1 and HunyuanVideo where there is no VAE to ask."""
    return vae_factors(json.loads(path.read_text())) if path.is_file() else (4, 8)


def _samples(recipe: Recipe) -> int:
    return recipe.sampler.count if recipe.needs_samples else 0


def _states(model: nn.Module, family: Family, sizes: Geometry) -> int:
    """Numbers that one sample passes from block to block."""
    return sizes.branches * sizes.tokens * token_width(family.blocks(model)[0][1], family)


def _outside(model: nn.Module, family: Family, parameters: int) -> int:
    """Parameters outside the blocks."""
    return parameters - sum(p.numel() for _, block in family.blocks(model) for p in block.parameters())


def _working(model: nn.Module, family: Family, recipe: Recipe, states: int) -> int:
    """Bytes of one block in training: its weights in several forms, what autograd keeps, and Hessians."""
    blocks = [block for _, block in family.blocks(model)]
    block_parameters = max(sum(p.numel() for p in block.parameters()) for block in blocks)
    widest = max(m.in_features for block in blocks for m in block.modules() if isinstance(m, nn.Linear))
    training = 30 * states * 4 if recipe.trains else 0
    hessians = 4 * 8 * widest**2 if recipe.uses_gptq else 0
    return training + hessians + 6 * block_parameters * 4


def _disk(recipe: Recipe, family: Family, config: Mapping[str, Any], sizes: Geometry, blocks: int, element: int) -> int:
    if not recipe.needs_samples:
        return 0
    latent = math.prod(sizes.latent) * config["in_channels"] * element
    text = sizes.branches * sizes.text * config[family.text_width] * element
    received = recipe.sampler.count * blocks * sizes.branches * sizes.tokens * 4
    weights = received if recipe.uses_token_weights else 0
    return recipe.sampler.prompts * ((sizes.steps + 1) * latent + text) + weights
