"""The corridor: quantize a pipeline's transformer into a folder, or in memory, each item of each stage resumable."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2q.calibration.selection import check_pool
from s2q.checkpoint import PROVENANCE_NAME
from s2q.media import described
from s2q.models.folder import PARTS, weight_files
from s2q.models.pipelines import OpenPipeline
from s2q.package import Storage, check_output, write_transformer
from s2q.progress import Progress, as_progress
from s2q.ranks import Ranks, joined
from s2q.recipe import Recipe
from s2q.reuse import Earlier, check_reuse, identity, open_earlier, read_note, take_over
from s2q.shards import float_checksum
from s2q.stages import STAGES, Calibration, calibrate
from s2q.storage import file_digest, fingerprint, read_json, write_json
from s2q.workspace import SECONDS_NAME, Workspace


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize`."""

    folder: Path
    workspace: Workspace
    seconds: dict[str, float]
    storage: Storage
    reused: dict[str, Any] | None = None
    """What was taken from an earlier run, see `s2q.reuse.read_note`."""


def settings(
    opened: OpenPipeline, recipe: Recipe, prompts: Sequence[str], seed: int, earlier: Earlier | None = None
) -> dict[str, Any]:
    """Everything the result depends on."""
    return {
        "pipeline": opened.source,
        "weights": _weights(opened),
        "recipe": recipe.model_dump(mode="json"),
        "prompts": list(map(described, prompts)) if recipe.needs_samples else [],
        "call": opened.call,
        "seed": seed,
        "dtype": str(opened.transformer.dtype),
        "device": opened.transformer.device.type,
        **({"part": opened.part} if opened.part != PARTS[0] else {}),
        **({"reused": identity(earlier)} if earlier is not None else {}),
    }


def _weights(opened: OpenPipeline) -> dict[str, str]:
    """What tells these weights from others: digests of the files, or of the tensors where there are no files."""
    if opened.folder is not None:
        return {path.name: file_digest(path) for path in weight_files(opened.folder / opened.part)}
    tensors = opened.transformer.state_dict().items()
    scheduler = fingerprint(opened.pipe.scheduler.to_json_string())
    return {name: float_checksum(name, tensor) for name, tensor in tensors} | {"scheduler": scheduler}


def checked_prompts(opened: OpenPipeline, recipe: Recipe, prompts: Sequence[str]) -> list[str]:
    """The prompts that are recorded, of those given.

    Raises:
        ValueError: too few of them, too few candidates, or some that the pipeline cannot be called with.
    """
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
    return prompts


def prepared(
    opened: OpenPipeline, recipe: Recipe, prompts: Sequence[str], seed: int, reuse: Path | Earlier | None
) -> tuple[list[str], Earlier | None, dict[str, Any]]:
    """The prompts that are recorded, the run that is reused, and the `settings`, once all have been seen to go together.

    Raises:
        ValueError: see `checked_prompts`, `open_earlier` and `check_reuse`.
    """
    prompts = checked_prompts(opened, recipe, prompts)
    earlier = open_earlier(reuse) if isinstance(reuse, Path) else reuse
    if earlier is not None:
        check_reuse(earlier, opened, recipe, prompts, seed)
    return prompts, earlier, settings(opened, recipe, prompts, seed, earlier)


def quantize(
    opened: OpenPipeline,
    recipe: Recipe,
    out: Path,
    *,
    prompts: Sequence[str] = (),
    seed: int = 0,
    work: Path | None = None,
    shared: Path | None = None,
    reuse: Path | Earlier | None = None,
    progress: Progress | Callable[[str, int, int, str], None] | None = None,
) -> Quantized:
    """Quantize the transformer of a pipeline into the folder `out`.

    Interrupted at any moment, the same call goes on from the last finished item and ends with the same bits.

    Args:
        prompts: one trajectory is recorded for each of the first `recipe.sampler.prompts`.
        work: folder for what is unfinished; default is `out` with `.work` added. It is left behind, and makes a repeated
            call cheap; it can be removed when `out` is there.
        shared: folder for what recipes have in common, trajectories and received attention, when several quantize the
            same pipeline from the same prompts and seed; default is `work`.
        reuse: an earlier run on the same architecture, such as the base of a fine-tune, or its folder: its samples,
            transforms and clips are taken over; `recipe.optim.epochs` more epochs are learned from there, which may be 0.
        progress: see `s2q.progress.as_progress`.

    Raises:
        ValueError: too few prompts or candidates, prompts that the pipeline cannot be called with, a folder that holds
            another run, or one that cannot be reused.
    """
    prompts, earlier, chosen = prepared(opened, recipe, prompts, seed, reuse)
    work = work or out.with_name(out.name + ".work")
    if check_output(out, fingerprint(chosen)):
        return _done(out, Workspace(work), read_json(work / SECONDS_NAME) or {})
    calibration = calibrated(opened, recipe, prompts, chosen, work, shared, earlier, as_progress(progress))
    with calibration as (workspace, found, ranks):
        if ranks.first:
            started = time.perf_counter()
            write_transformer(opened, recipe, workspace, out, provenance(chosen, found, prompts, read_note(workspace)))
            write_json(workspace.folder / SECONDS_NAME, seconds_of(found, time.perf_counter() - started))
        ranks.wait()
        return _done(out, workspace, read_json(workspace.folder / SECONDS_NAME))


@contextmanager
def calibrated(
    opened: OpenPipeline,
    recipe: Recipe,
    prompts: Sequence[str],
    chosen: dict[str, Any],
    work: Path,
    shared: Path | None,
    earlier: Earlier | None,
    progress: Progress,
) -> Iterator[tuple[Workspace, Calibration, Ranks]]:
    """Run all stages; inside, the results stand in the workspace that is given. `chosen` are the `settings`."""
    with joined() as ranks:
        workspace = common = _begin(work, chosen, ranks)
        if shared is not None and recipe.needs_samples:
            common = _begin(shared, {name: value for name, value in chosen.items() if name != "recipe"}, ranks)
        if earlier is not None and ranks.first:
            take_over(earlier, recipe, workspace, common)
        ranks.wait()
        found = calibrate(opened, recipe, prompts, chosen["seed"], workspace, common, ranks, progress, earlier)
        yield workspace, found, ranks
        ranks.wait()  # the caller may remove the work folder


def _done(out: Path, workspace: Workspace, seconds: dict[str, float]) -> Quantized:
    storage = Storage(**read_json(out / PROVENANCE_NAME)["storage"])
    return Quantized(out, workspace, seconds, storage, read_note(workspace))


def _begin(folder: Path, chosen: dict[str, Any], ranks: Ranks) -> Workspace:
    # The first rank alone, for opening removes what a killed process left half written.
    if ranks.first:
        Workspace.open(folder, chosen)
    ranks.wait()
    return Workspace(folder)


def seconds_of(found: Calibration, packing: float) -> dict[str, float]:
    """Time of every stage."""
    return {stage: found.seconds.get(stage, 0.0) for stage in STAGES} | {"packing": packing}


def provenance(
    chosen: dict[str, Any], found: Calibration, prompts: Sequence[str], reused: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Where the result came from; nothing in it depends on the clock, so that the same run gives the same bytes.

    Args:
        reused: as `s2q.reuse.read_note` gives it.
    """
    kept = {
        key: chosen[key] for key in ("pipeline", "recipe", "seed", "dtype", "device", "call", "part") if key in chosen
    }
    if reused is not None:
        kept["reused"] = {key: reused[key] for key in ("pipeline", "settings", "taken")}
    return kept | {
        "settings": fingerprint(chosen),
        "prompts": list(map(described, prompts)),
        "samples": [list(sample) for sample in found.samples],
        "salience": found.scores,
        "timesteps": found.timesteps,
        "blocks": found.blocks,
    }
