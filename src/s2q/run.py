"""The corridor: the stages of quantizing in order, each item of each stage resumable."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2q.blockwise import Blockwise, CalibrationSet
from s2q.calibration.salience import combine, min_max, salience_of_prompt
from s2q.calibration.selection import Sample, check_pool, select
from s2q.calibration.trajectory import TrajectoryStore, record_trajectories
from s2q.checkpoint import PROVENANCE_NAME
from s2q.media import described
from s2q.models.blocks import first_call, modality_slices, to_device
from s2q.models.folder import PARTS, weight_files
from s2q.models.pipelines import OpenPipeline
from s2q.package import Storage, check_output, write_transformer
from s2q.progress import NoProgress, Progress
from s2q.quantization.tokens import received_by_block, weights_by_part
from s2q.ranks import Ranks, joined
from s2q.recipe import Recipe
from s2q.storage import derived_seed, file_digest, fingerprint, read_json, read_metadata, write_json, write_tensors
from s2q.workspace import Workspace

STAGES = ("trajectories", "selection", "token_weights", "calibration")
SECONDS_NAME = "seconds.json"
SELECTION_NAME = "selection.json"


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
        "weights": {path.name: file_digest(path) for path in weight_files(opened.folder / opened.part)},
        "recipe": recipe.model_dump(mode="json"),
        "prompts": list(map(described, prompts)) if recipe.needs_samples else [],
        "call": opened.call,
        "seed": seed,
        "dtype": str(opened.transformer.dtype),
        "device": opened.transformer.device.type,
        **({"part": opened.part} if opened.part != PARTS[0] else {}),
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
        ValueError: too few prompts or candidates, prompts that the pipeline cannot be called with, or a folder that holds
            another run.
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
        opened.check(prompts)
        check_pool(len(prompts), opened.steps, sampler)
    chosen = settings(opened, recipe, prompts, seed)
    work = work or out.with_name(out.name + ".work")
    if check_output(out, fingerprint(chosen)):
        storage = Storage(**read_json(out / PROVENANCE_NAME)["storage"])
        return Quantized(out, Workspace(work), read_json(work / SECONDS_NAME) or {}, storage)
    opened.transformer.eval().requires_grad_(False)
    with joined() as ranks:
        workspace = common = _begin(work, chosen, ranks)
        if shared is not None and recipe.needs_samples:
            common = _begin(shared, {name: value for name, value in chosen.items() if name != "recipe"}, ranks)
        found, given = Calibration(), CalibrationSet()
        if recipe.needs_samples:
            store = record_trajectories(opened, prompts, seed, common.folder / "trajectories", progress, ranks.takes)
            ranks.wait()
            found.seconds["trajectories"] = store.seconds()
            if ranks.first:
                _select(opened, recipe, store, seed, workspace, progress)
            ranks.wait()
            _read_selection(workspace, found)
            given = CalibrationSet(store, tuple(found.samples))
            if recipe.objective.token_weights:
                given = replace(given, weights=_token_weights(opened, recipe, given, common, progress, found, ranks))
        Blockwise(opened, recipe, given, seed, workspace, ranks).run(progress)
        ranks.wait()
        _read_blocks(opened, workspace, found)
        if ranks.first:
            _write(opened, recipe, workspace, out, provenance(chosen, found, prompts), found)
        ranks.wait()
        storage = Storage(**read_json(out / PROVENANCE_NAME)["storage"])
        done = Quantized(out, workspace, read_json(workspace.folder / SECONDS_NAME), storage)
        ranks.wait()  # the caller may remove the work folder
    return done


def _begin(folder: Path, chosen: dict[str, Any], ranks: Ranks) -> Workspace:
    # The first rank alone, for opening removes what a killed process left half written.
    if ranks.first:
        Workspace.open(folder, chosen)
    ranks.wait()
    return Workspace(folder)


def _read_blocks(opened: OpenPipeline, workspace: Workspace, found: Calibration) -> None:
    for index, (name, _) in enumerate(opened.family.blocks(opened.transformer)):
        metadata = workspace.block_metadata(index)
        found.blocks.append({"name": name, "before": metadata["before"], "after": metadata["after"]})
        found.seconds["calibration"] = found.seconds.get("calibration", 0.0) + metadata["seconds"]


def _write(
    opened: OpenPipeline,
    recipe: Recipe,
    workspace: Workspace,
    out: Path,
    provenance: dict[str, Any],
    found: Calibration,
) -> None:
    started = time.perf_counter()
    write_transformer(opened, recipe, workspace, out, provenance)
    seconds = {stage: found.seconds.get(stage, 0.0) for stage in STAGES} | {"packing": time.perf_counter() - started}
    write_json(workspace.folder / SECONDS_NAME, seconds)


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
) -> None:
    path = workspace.folder / SELECTION_NAME
    if read_json(path) is not None:
        return
    started = time.perf_counter()
    transformer, pairs = opened.transformer, []
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


def _read_selection(workspace: Workspace, found: Calibration) -> None:
    done = read_json(workspace.folder / SELECTION_NAME)
    found.samples = [Sample(*sample) for sample in done["samples"]]
    found.scores, found.timesteps = done["scores"], done["timesteps"]
    found.seconds["selection"] = done["seconds"]


def _token_weights(
    opened: OpenPipeline,
    recipe: Recipe,
    given: CalibrationSet,
    workspace: Workspace,
    progress: Progress,
    found: Calibration,
    ranks: Ranks,
) -> tuple[tuple[Tensor, ...], ...]:
    """λ by sample and block, [B, S] each."""
    objective, transformer, family = recipe.objective, opened.transformer, opened.family
    folder = workspace.folder / "token_weights"
    paths = [folder / f"prompt-{prompt:04d}-step-{step:04d}.safetensors" for prompt, step in given.samples]
    with progress.stage("token_weights", len(paths)) as stage:
        for index, path in enumerate(paths):
            if ranks.takes(index) and read_metadata(path) is None:
                started = time.perf_counter()
                arguments = to_device(given.arguments(index), transformer.device)
                received = received_by_block(transformer, family, arguments)
                tensors = {f"block.{block}": sums for block, sums in enumerate(received)}
                write_tensors(path, tensors, {"seconds": time.perf_counter() - started})
            stage.advance()
    ranks.wait()
    found.seconds["token_weights"] = sum(read_metadata(path)["seconds"] for path in paths)
    parts = [slice(None)]
    if objective.token_scope == "modality":
        call = first_call(transformer, family, to_device(given.arguments(0), transformer.device))
        parts = modality_slices(family, call.states)
    return tuple(
        tuple(
            weights_by_part(received[f"block.{block}"], parts, objective.lambda_min, objective.lambda_max)
            for block in range(len(received))
        )
        for received in map(load_file, paths)
    )
