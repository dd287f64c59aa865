"""The stages of calibration in order, each item of each stage resumable; what they leave is files in a work folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from s2q.blockwise import Blockwise, CalibrationSet
from s2q.calibration.recording import record_trajectories
from s2q.calibration.salience import combine, min_max, salience_of_prompt
from s2q.calibration.selection import Sample, select
from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.blocks import first_call, modality_slices, to_device
from s2q.models.pipelines import OpenPipeline
from s2q.progress import Progress
from s2q.quantization.tokens import received_by_block, weights_by_part
from s2q.ranks import Ranks
from s2q.recipe import Recipe
from s2q.reuse import Earlier
from s2q.storage import derived_seed, read_json, read_metadata, write_json, write_tensors
from s2q.workspace import SELECTION_NAME, TOKEN_WEIGHTS, TRAJECTORIES, Workspace

STAGES = ("trajectories", "selection", "token_weights", "calibration")


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


def calibrate(
    opened: OpenPipeline,
    recipe: Recipe,
    prompts: Sequence[str],
    seed: int,
    workspace: Workspace,
    common: Workspace,
    ranks: Ranks,
    progress: Progress,
    earlier: Earlier | None = None,
) -> Calibration:
    """Record, score, select, watch and calibrate every block; what is done already is read.

    Args:
        common: holds what several recipes share, trajectories and received attention; may be `workspace`.
        earlier: a run whose transforms are the start of this one's, see `s2q.reuse`.
    """
    opened.transformer.eval().requires_grad_(False)
    found, given = Calibration(), CalibrationSet()
    if recipe.needs_samples:
        store = record_trajectories(opened, prompts, seed, common.folder / TRAJECTORIES, progress, ranks.takes)
        ranks.wait()
        found.seconds["trajectories"] = store.seconds()
        if ranks.first:
            _select(opened, recipe, store, seed, workspace, progress)
        ranks.wait()
        _read_selection(workspace, found)
        given = CalibrationSet(store, tuple(found.samples))
        if recipe.uses_token_weights:
            given = replace(given, weights=_token_weights(opened, recipe, given, common, progress, found, ranks))
    Blockwise(opened, recipe, given, seed, workspace, ranks, earlier).run(progress)
    ranks.wait()
    _read_blocks(opened, workspace, found)
    return found


def _read_blocks(opened: OpenPipeline, workspace: Workspace, found: Calibration) -> None:
    for index, (name, _) in enumerate(opened.family.blocks(opened.transformer)):
        metadata = workspace.block_metadata(index)
        found.blocks.append({"name": name, "before": metadata["before"], "after": metadata["after"]})
        found.seconds["calibration"] = found.seconds.get("calibration", 0.0) + metadata["seconds"]


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
    # A pose or a video of more frames than another may take more sections: candidates are those of which all have one.
    steps = min(len(diffusion) for diffusion, _ in pairs)
    diffusion, quantization = (torch.stack([one[:steps] for one in side]) for side in zip(*pairs, strict=True))
    alone = {"diffusion": diffusion, "quantization": quantization}.get(recipe.sampler.score)
    scores = combine(diffusion, quantization) if alone is None else min_max(alone)
    done = {
        "samples": select(scores, recipe.sampler, derived_seed(seed, "sampler")),
        "scores": scores.tolist(),
        "timesteps": store.timesteps()[:steps].tolist(),
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
    """λ by call and block, [B, S] each."""
    objective, transformer, family = recipe.objective, opened.transformer, opened.family
    folder = workspace.folder / TOKEN_WEIGHTS
    paths = [
        folder / f"prompt-{prompt:04d}-step-{step:04d}{f'-call-{call}' if call else ''}.safetensors"
        for (prompt, step), call in given.calls
    ]
    with progress.stage("token_weights", len(paths)) as stage:
        for index, path in enumerate(paths):
            if ranks.takes(index) and read_metadata(path) is None:
                started = time.perf_counter()
                arguments = to_device(given.arguments(index), transformer.device)
                received = received_by_block(transformer, family, arguments, perturbed=given.calls[index].call > 0)
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
