"""The front door of quantizing: a pipeline object becomes a quantized one, or a folder is written."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from s2q import run
from s2q.deferred import made
from s2q.models.pipelines import OpenPipeline, PipelineError, open_pipeline
from s2q.package import Storage, collect, storage_of
from s2q.progress import Progress, as_progress
from s2q.prompts import calibration_prompts
from s2q.recipe import Recipe
from s2q.reuse import Earlier, open_earlier, read_note, recipe_after
from s2q.runtime.diffusers import install


@dataclass(frozen=True)
class QuantizedInMemory:
    """What `quantize` found while it quantized a pipeline in memory."""

    storage: Storage
    """Bytes of the transformer's tensors, before and after."""
    seconds: dict[str, float]
    """Time of each stage."""
    provenance: dict[str, Any]
    """As `s2q_provenance.json` has it: recipe, seed, prompts, chosen samples, the error of every block."""


def quantize(
    pipeline: DiffusionPipeline | OpenPipeline,
    recipe: str | Recipe | None = None,
    out: str | Path | None = None,
    *,
    bits: str | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    part: str | None = None,
    work: str | Path | None = None,
    reuse: str | Path | None = None,
    progress: Progress | Callable[[str, int, int, str], None] | None = None,
    **call: Any,
) -> QuantizedInMemory | run.Quantized:
    """Quantize the transformer of a video pipeline.

    Without `out` the pipeline itself is changed: its transformer, the same object, holds packed weights afterwards, runs at
    once, and is saved by its own `save_pretrained` or `push_to_hub`. With `out` the pipeline stays as it is, and the folder
    is the one that `s2q quantize` writes. The tensors are the same, bit for bit.

    The stages hand one another files, so that there is one way of quantizing and not two: without `work` they stand in a
    temporary folder that is removed at the end. With `work` an interrupted call goes on where it was, and what is recorded
    of the prompts stays there for `reuse`.

    Args:
        pipeline: a loaded diffusers pipeline, in full precision and without hooks or adapters; or what `open_pipeline` gave.
        recipe: a name, see docs/recipes.md, or a `Recipe`, which has its bits itself. Default: "s2q_plus", or that of `reuse`.
        bits: of a recipe that is no `Recipe`, such as "W4A6". Default: "W4A8", or those of `reuse`.
        prompts: to calibrate on, `s2q.Prompt` where they come with files; default are those that s2q bundles, words alone.
        part: which transformer is meant where the pipeline has two, "transformer" or "transformer_2".
        reuse: folder of an earlier run on the same architecture, such as the base of a fine-tune, see `s2q.run.quantize`. A
            recipe that is no `Recipe` learns nothing more then; a `Recipe` learns its `optim.epochs` more.
        progress: None is silent; a function of (stage, done, total, note); or an object as `s2q.progress.Progress` says.
        call: arguments of every call of the pipeline while it is recorded: num_inference_steps, height, width, num_frames,
            guidance_scale … Best are those that it will be called with. They belong to `open_pipeline` if that was used.

    Raises:
        ValueError: (PipelineError, ReuseError, OutputError …) what was seen, what is allowed, what to do; nothing is changed.
    """
    if isinstance(pipeline, OpenPipeline):
        if call or part is not None:
            raise TypeError(f"{', '.join([*call, *(['part'] if part else [])])}: give these to open_pipeline instead")
        opened = pipeline
    elif isinstance(pipeline, DiffusionPipeline):
        opened = open_pipeline(pipeline, part=part, **call)
    else:
        raise TypeError(f"pipeline must be a diffusers pipeline, or what s2q.open_pipeline gives; got {pipeline!r}")
    earlier = None if reuse is None else open_earlier(Path(reuse))
    if not isinstance(recipe, Recipe):
        recipe = recipe_after(earlier, recipe, bits)
    if prompts is None:
        prompts = calibration_prompts(opened.source, recipe.sampler.prompts, seed)
    work = None if work is None else Path(work)
    with _quiet(opened.pipe):
        if out is not None:
            return run.quantize(
                opened, recipe, Path(out), prompts=prompts, seed=seed, work=work, reuse=earlier, progress=progress
            )
        return _in_memory(opened, recipe, prompts, seed, work, earlier, as_progress(progress))


def _in_memory(
    opened: OpenPipeline,
    recipe: Recipe,
    prompts: Sequence[str],
    seed: int,
    work: Path | None,
    reuse: Earlier | None,
    progress: Progress,
) -> QuantizedInMemory:
    if opened.stream is not None:
        raise PipelineError("the transformer's blocks are on disk (stream): give out=, or open it with stream=False")
    if work is None and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("several processes work on this run: give work=, a folder that all of them see")
    prompts, earlier, chosen = run.prepared(opened, recipe, prompts, seed, reuse)
    with tempfile.TemporaryDirectory(prefix="s2q-") as temporary:
        folder = work or Path(temporary)
        calibration = run.calibrated(opened, recipe, prompts, chosen, folder, None, earlier, progress)
        with calibration as (workspace, found, _):
            started = time.perf_counter()
            tensors, spec = collect(opened, recipe, workspace)
            _, storage = storage_of(opened, tensors, spec)
            install(opened.transformer, spec, made(tensors))
            seconds = run.seconds_of(found, time.perf_counter() - started)
            noted = run.provenance(chosen, found, prompts, read_note(workspace))
    return QuantizedInMemory(storage, seconds, noted | {"storage": storage.to_dict()})


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Inside, the pipeline draws no bars of its own; afterwards it is set as it was."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
