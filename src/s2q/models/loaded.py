"""What must be true of a pipeline that is loaded, and of the arguments that it is to be called with."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline

from s2q.models.family import Family, patch_of
from s2q.models.folder import PARTS, PipelineError, check_calls, check_part
from s2q.models.inputs import FRAMES
from s2q.models.lookup import resolve


def check_loaded(pipe: DiffusionPipeline, part: str | None) -> tuple[str, Family]:
    """Whether the transformer of a pipeline that a program loaded can be quantized; which one is meant, and its family.

    Args:
        part: which of its transformers is meant; None is the only one.

    Raises:
        PipelineError: it cannot be, with what to do.
    """
    what = f"this {type(pipe).__name__}"
    there = [name for name in PARTS if getattr(pipe, name, None) is not None]
    if not there:
        raise PipelineError(f"{what} has no transformer: s2q quantizes video transformers")
    check_calls(what, type(pipe))
    meant = check_part(what, there, part)
    transformer = getattr(pipe, meant)
    try:
        family = replace(resolve(transformer), pipeline=type(pipe).__name__)
    except ValueError as error:
        raise PipelineError(str(error)) from None
    if is_hooked(transformer):
        raise PipelineError(
            f"{what} has hooks on its {meant} (offloading or caching): quantize first and add them afterwards, or call "
            "remove_all_hooks() and disable_cache() first"
        )
    if getattr(transformer, "peft_config", None):
        raise PipelineError(
            f"{what} has adapters on its {meant}: fuse them (fuse_lora, then unload_lora_weights) first"
        )
    if getattr(transformer, "is_quantized", False):
        raise PipelineError(f"the {meant} of {what} is quantized already: load the one in full precision")
    return meant, family


def is_hooked(transformer: torch.nn.Module) -> bool:
    """Whether diffusers or accelerate have hooks anywhere in it, which change what its forward does."""
    # diffusers leaves an empty registry behind on every transformer that it has called.
    return any(
        hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))
        for module in transformer.modules()
    )


def checked_call(pipe: DiffusionPipeline, transformer: torch.nn.Module, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `call` that are given, as the pipeline can be called with them.

    Raises:
        PipelineError: a size that it does not make, or an argument that it does not take.
    """
    _check_size(pipe, transformer, call)
    chosen = {name: value for name, value in call.items() if value is not None}
    unknown = sorted(chosen.keys() - inspect.signature(pipe.__call__).parameters.keys())
    if unknown:
        length = ": the video that it is given decides the length" if set(unknown) & set(FRAMES) else ""
        raise PipelineError(f"the calls of {type(pipe).__name__} take no {', '.join(unknown)}{length}")
    return chosen


def _check_size(pipe: DiffusionPipeline, transformer: torch.nn.Module, call: Mapping[str, Any]) -> None:
    ratios = (getattr(pipe, name, None) for name in ("vae_scale_factor_spatial", "vae_spatial_compression_ratio"))
    spatial, patch = next((ratio for ratio in ratios if ratio), 8), patch_of(transformer.config)
    multiples = {"height": spatial * patch[1], "width": spatial * patch[2]}
    wrong = [name for name, multiple in multiples.items() if call.get(name) and call[name] % multiple]
    if wrong:
        said = " and ".join(f"{name} {call[name]}" for name in wrong)
        allowed = " and ".join(str(multiple) for multiple in sorted({multiples[name] for name in wrong}))
        raise PipelineError(f"{said}: this pipeline makes only multiples of {allowed} pixels")
