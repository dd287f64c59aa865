"""The corridor: the stages of quantizing in order, each item of each stage resumable."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2q.calibration.salience import combine, min_max, salience_of_prompt
from s2q.calibration.selection import Sample, check_pool, select
from s2q.calibration.trajectory import TrajectoryStore, record_trajectories
from s2q.checkpoint import PROVENANCE_NAME
from s2q.models.blocks import first_call, joined_tokens, modality_slices, record_calls, replay, to_device
from s2q.models.pipelines import OpenPipeline, weight_files
from s2q.package import Storage, check_output, write_transformer
from s2q.progress import NoProgress, Progress
from s2q.quantization.block import calibrate_block, packed_block
from s2q.quantization.objective import BlockSample
from s2q.quantization.tokens import received_by_block, weights_by_part
from s2q.recipe import Recipe
from s2q.storage import derived_seed, file_digest, fingerprint, read_json, read_metadata, write_json, write_tensors
from s2q.workspace import Workspace

STAGES = ("trajectories", "selection", "token_weights", "calibration")
SECONDS_NAME = "seconds.json"


@dataclass
class Calibration:
    """What calibration found, for provenance and report."""

    samples: list[Sample] = field(default_factory=list)
    scores: list[list[float]] | None = None
    """[P][T], Eq. 8."""
    timesteps: list[float] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    """name, before (round-to-nearest), after: relative error of the block's outputs."""
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize`."""

    folder: Path
    workspace: Workspace
    seconds: dict[str, float]
    storage: Storage


def settings(opened: OpenPipeline, recipe: Recipe, prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """Everything the result depends on."""
    return {
        "pipeline": opened.source,
        "weights": {path.name: file_digest(path) for path in weight_files(opened.folder / "transformer")},
        "recipe": recipe.model_dump(mode="json"),
        "prompts": list(prompts) if recipe.needs_samples else [],
        "call": opened.call,
        "seed": seed,
        "dtype": str(opened.pipe.transformer.dtype),
        "device": opened.pipe.transformer.device.type,
    }


def quantize(
    opened: OpenPipeline,
    recipe: Recipe,
    out: Path,
    *,
    prompts: Sequence[str] = (),
    seed: int = 0,
    work: Path | None = None,
    shared: Path | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize the transformer of a pipeline into the folder `out`.

    Interrupted at any moment, the same call goes on from the last finished item and ends with the same bits.

    Args:
        prompts: one trajectory is recorded for each of the first `recipe.sampler.prompts`.
        work: folder for what is unfinished; default is `out` with `.work` added. It is left behind, and makes a repeated
            call cheap; it can be removed when `out` is there.
        shared: folder for what recipes have in common, trajectories and received attention, when several quantize the
            same pipeline from the same prompts and seed; default is `work`.

    Raises:
        ValueError: too few prompts or candidates, or a folder that holds another run.
    """
    progress = progress or NoProgress()
    sampler = recipe.sampler
    if recipe.needs_samples and len(prompts) < sampler.prompts:
        raise ValueError(
            f"recipe {recipe.name!r} records {sampler.prompts} prompts, but only {len(prompts)} were given: "
            "give more, or set sampler.prompts"
        )
    prompts = list(prompts[: sampler.prompts])
    if recipe.needs_samples:
        check_pool(len(prompts), opened.steps, sampler)
    chosen = settings(opened, recipe, prompts, seed)
    work = work or out.with_name(out.name + ".work")
    if check_output(out, fingerprint(chosen)):
        storage = Storage(**read_json(out / PROVENANCE_NAME)["storage"])
        return Quantized(out, Workspace(work), read_json(work / SECONDS_NAME) or {}, storage)
    workspace = Workspace.open(work, chosen)
    common = workspace
    if shared is not None and recipe.needs_samples:
        common = Workspace.open(shared, {name: value for name, value in chosen.items() if name != "recipe"})
    opened.pipe.transformer.eval().requires_grad_(False)
    found = Calibration()
    weights: list[list[Tensor]] = []
    store = None
    if recipe.needs_samples:
        store = record_trajectories(opened, prompts, seed, common.folder / "trajectories", progress)
        found.seconds["trajectories"] = store.seconds()
        _select(opened, recipe, store, seed, workspace, progress, found)
        weights = _token_weights(opened, recipe, store, common, progress, found)
    _calibrate(opened, recipe, store, weights, seed, workspace, progress, found)
    started = time.perf_counter()
    storage = write_transformer(opened, recipe, workspace, out, provenance(chosen, found, prompts))
    seconds = {stage: found.seconds.get(stage, 0.0) for stage in STAGES} | {"packing": time.perf_counter() - started}
    write_json(workspace.folder / SECONDS_NAME, seconds)
    return Quantized(out, workspace, seconds, storage)


def provenance(chosen: dict[str, Any], found: Calibration, prompts: Sequence[str]) -> dict[str, Any]:
    """Where the result came from; nothing in it depends on the clock, so that the same run gives the same bytes."""
    kept = {key: chosen[key] for key in ("pipeline", "recipe", "seed", "dtype", "device", "call")}
    return kept | {
        "settings": fingerprint(chosen),
        "prompts": list(prompts),
        "samples": [list(sample) for sample in found.samples],
        "salience": found.scores,
        "timesteps": found.timesteps,
        "blocks": found.blocks,
    }


def _select(
    opened: OpenPipeline,
    recipe: Recipe,
    store: TrajectoryStore,
    seed: int,
    workspace: Workspace,
    progress: Progress,
    found: Calibration,
) -> None:
    path = workspace.folder / "selection.json"
    done = read_json(path)
    if done is None:
        started = time.perf_counter()
        transformer, pairs = opened.pipe.transformer, []
        with progress.stage("selection", store.prompts) as stage:
            for prompt in range(store.prompts):
                pairs.append(salience_of_prompt(store, prompt, transformer, opened.family, recipe.sampler.tokens))
                stage.advance()
        diffusion, quantization = (torch.stack(side) for side in zip(*pairs, strict=True))
        alone = {"diffusion": diffusion, "quantization": quantization}.get(recipe.sampler.score)
        scores = combine(diffusion, quantization) if alone is None else min_max(alone)
        done = {
            "samples": select(scores, recipe.sampler, derived_seed(seed, "sampler")),
            "scores": scores.tolist(),
            "timesteps": store.timesteps().tolist(),
            "seconds": time.perf_counter() - started,
        }
        write_json(path, done)
    found.samples = [Sample(*sample) for sample in done["samples"]]
    found.scores, found.timesteps = done["scores"], done["timesteps"]
    found.seconds["selection"] = done["seconds"]


def _arguments(opened: OpenPipeline, store: TrajectoryStore, sample: Sample) -> dict[str, Any]:
    return to_device(store.arguments(sample.prompt, sample.step), opened.pipe.transformer.device)


def _token_weights(
    opened: OpenPipeline,
    recipe: Recipe,
    store: TrajectoryStore,
    workspace: Workspace,
    progress: Progress,
    found: Calibration,
) -> list[list[Tensor]]:
    """λ by sample and block, [B, S] each; empty if the recipe does not weight tokens."""
    objective, weights, seconds = recipe.objective, [], 0.0
    if not objective.token_weights:
        return weights
    parts = [slice(None)]
    if objective.token_scope == "modality":
        call = first_call(opened.pipe.transformer, opened.family, _arguments(opened, store, found.samples[0]))
        parts = modality_slices(opened.family, call.states)
    with progress.stage("token_weights", len(found.samples)) as stage:
        for sample in found.samples:
            name = f"prompt-{sample.prompt:04d}-step-{sample.step:04d}.safetensors"
            path = workspace.folder / "token_weights" / name
            if read_metadata(path) is None:
                started = time.perf_counter()
                received = received_by_block(opened.pipe.transformer, opened.family, _arguments(opened, store, sample))
                tensors = {f"block.{block}": sums for block, sums in enumerate(received)}
                write_tensors(path, tensors, {"seconds": time.perf_counter() - started})
            seconds += read_metadata(path)["seconds"]
            received = load_file(path)
            weights.append(
                [
                    weights_by_part(received[f"block.{block}"], parts, objective.lambda_min, objective.lambda_max)
                    for block in range(len(received))
                ]
            )
            stage.advance()
    found.seconds["token_weights"] = seconds
    return weights


def _calibrate(
    opened: OpenPipeline,
    recipe: Recipe,
    store: TrajectoryStore | None,
    weights: list[list[Tensor]],
    seed: int,
    workspace: Workspace,
    progress: Progress,
    found: Calibration,
) -> None:
    """Quantize block after block; what a block passes on is made again from the float model when a run is resumed."""
    transformer, family = opened.pipe.transformer, opened.family
    blocks = family.blocks(transformer)
    recorded = [record_calls(transformer, family, _arguments(opened, store, sample)) for sample in found.samples]
    states = [first for first, _ in recorded]
    quantized_states = states
    steps = frames = 0
    if store is not None:
        frames = store.latents(0).shape[1 + family.layout.index("F")]
    if recipe.trains:
        steps = recipe.optim.epochs * -(-len(states) // recipe.optim.batch_size)
    with progress.stage("calibration", len(blocks) * (steps + 1)) as stage:
        for index, (name, block) in enumerate(blocks):
            path = workspace.block_path(index)
            sides = [all_sides[index] for _, all_sides in recorded]
            outputs = [replay(block, family, s, side) for s, side in zip(states, sides, strict=True)]
            if read_metadata(path) is None:
                samples = [
                    BlockSample(
                        quantized_states[k],
                        sides[k],
                        joined_tokens(family, outputs[k]),
                        weights[k][index].to(transformer.device) if weights else None,
                        sample.step / opened.steps,
                        frames,
                        opened.guidance_scale,
                    )
                    for k, sample in enumerate(found.samples)
                ]
                groups = family.groups(block, recipe.keep_float)
                calibrated = calibrate_block(
                    block, family, recipe, groups, samples, derived_seed(seed, "block", index), stage.advance
                )
                workspace.write_block(index, name, groups, calibrated)
                stage.advance(note=name)
            else:
                stage.advance(steps + 1, note=name)
            metadata = read_metadata(path)
            found.blocks.append({"name": name, "before": metadata["before"], "after": metadata["after"]})
            found.seconds["calibration"] = found.seconds.get("calibration", 0.0) + metadata["seconds"]
            if recipe.optim.propagate_error and states:
                packed = packed_block(block, family, recipe, workspace.read_block(index))
                quantized_states = [
                    replay(packed, family, s, side) for s, side in zip(quantized_states, sides, strict=True)
                ]
            else:
                quantized_states = outputs
            states = outputs
