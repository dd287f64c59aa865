"""Open a diffusers pipeline: a folder, a hub id, the word `demo`, or one that is loaded already, with clear errors first."""

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from diffusers import DiffusionPipeline

from s2q.models.family import Family
from s2q.models.fetching import DEMOS, fetch_configurations, fetch_whole, local_folder
from s2q.models.folder import (
    PARTS,
    PipelineError,
    check_configurations,
    check_folder,
    check_part,
    check_replacement,
    pipeline_class,
    weight_files,
)
from s2q.models.geometry import call_defaults, denoising_steps
from s2q.models.inputs import check_prompts
from s2q.models.loaded import check_loaded, checked_call
from s2q.models.lookup import resolve, resolve_folder
from s2q.models.streaming import BlockStream, StreamingError, open_streamed, should_stream

IN_MEMORY = "in memory"
"""What is noted as the source of a pipeline that a program had loaded itself."""


@dataclass
class OpenPipeline:
    """A loaded pipeline, and how it is to be called."""

    source: str
    """What the user named, or `IN_MEMORY`."""
    folder: Path | None
    """Where it stands on this machine; None if all that is known of it is in memory."""
    pipe: DiffusionPipeline
    family: Family
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call: size, steps, guidance."""
    stream: BlockStream | None = None
    """Where the transformer's blocks are read from, if they are not in memory."""
    part: str = PARTS[0]
    """Which of the pipeline's transformers is meant."""
    text_encoders: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    """Part → quantized text encoder that `using` puts in place together with its transformer."""
    disposable_text: bool = False
    """Whether text encoders may leave for good when the prompts are encoded: nobody calls the pipeline afterwards."""

    @property
    def transformer(self) -> torch.nn.Module:
        """The transformer that is meant."""
        return getattr(self.pipe, self.part)

    @property
    def transformers(self) -> list[torch.nn.Module]:
        """All that the pipeline denoises with: one, or two that share the steps."""
        found = (getattr(self.pipe, part, None) for part in PARTS)
        return [transformer for transformer in found if transformer is not None]

    @contextmanager
    def held(self, block: torch.nn.Module) -> Iterator[None]:
        """Inside, the weights of a block of the pipeline's own transformer are in memory."""
        with nullcontext() if self.stream is None else self.stream.held(block):
            yield

    @contextmanager
    def using(self, transformer: torch.nn.Module, second: torch.nn.Module | None = None) -> Iterator[None]:
        """Inside, the pipeline runs with `transformer`, `second` if it is given, and `text_encoders`; then with its own."""
        others = {**self.text_encoders, self.part: transformer} | ({} if second is None else {PARTS[1]: second})
        own = {name: getattr(self.pipe, name) for name in others}
        try:
            for name, component in others.items():
                setattr(self.pipe, name, component)
            yield
        finally:
            for name, component in own.items():
                setattr(self.pipe, name, component)

    def check(self, prompts: Sequence[str]) -> None:
        """Whether the pipeline can be called with each of `prompts`, see `check_prompts`.

        Raises:
            ValueError: with everything that is wrong.
        """
        size = self._argument("height"), self._argument("width")
        check_prompts(type(self.pipe), prompts, size if all(size) else None)

    @property
    def all_steps(self) -> int:
        """Denoising steps of a call."""
        return denoising_steps(self._arguments(), getattr(self.pipe, "vae_scale_factor_temporal", 4))

    @property
    def steps(self) -> int:
        """Denoising steps of a call that the transformer serves, T."""
        steps, boundary = self.all_steps, self.pipe.config.get("boundary_ratio")
        if boundary is None:
            return steps
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(steps)
        first = int((scheduler.timesteps >= boundary * scheduler.config.num_train_timesteps).sum())
        return first if self.part == PARTS[0] else steps - first

    @property
    def fps(self) -> float:
        """Frames per second of what it makes: what its calls say, or what its family is shown at."""
        if self.source in DEMOS:
            return 8.0
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        said = [self.call.get(name, parameters[name].default) for name in ("frame_rate", "fps") if name in parameters]
        return float(said[0]) if said else self.family.fps

    @property
    def sampling_rate(self) -> int | None:
        """Samples per second of the sound that it makes; None for a silent one."""
        vocoder = getattr(self.pipe, "vocoder", None)
        return None if vocoder is None else vocoder.config.output_sampling_rate

    @property
    def guidance_scale(self) -> float | None:
        """Scale of classifier-free guidance; None where the transformer runs once a step."""
        if self.family.guidance is None:
            guider = getattr(self.pipe, "guider", None)
            return getattr(guider, "guidance_scale", None)
        scale = self._argument(self.family.guidance)
        if self.part != PARTS[0]:
            scale = self.call.get("guidance_scale_2") or scale
        return scale if scale > 1 else None

    def _arguments(self) -> dict[str, Any]:
        return call_defaults(self.family) | self.call

    def _argument(self, name: str) -> Any:
        return self._arguments().get(name)


def locate(source: str, part: str | None = None) -> Path:
    """The local folder of the pipeline that `source` names; a hub id is downloaded (resumed, if it was broken off).

    Raises:
        PipelineError: a folder that is missing, incomplete, or no pipeline, see `check_folder`; or a hub that does not give
            it.
    """
    folder = local_folder(source)
    if folder is None:
        check_part(source, check_configurations(fetch_configurations(source)), part)  # before tens of GiB are fetched
        folder = fetch_whole(source)
    if source in DEMOS:
        check_part(source, PARTS[:1], part)
    else:
        check_folder(folder, part)
    return folder


def locate_configurations(source: str) -> tuple[Path, list[str]]:
    """The same where its configurations are enough: of a hub id no weights are fetched. Also which transformers it has.

    Raises:
        PipelineError: a folder that is missing or no pipeline, see `check_configurations`; or a hub that does not give it.
    """
    folder = local_folder(source) or fetch_configurations(source)
    return folder, check_configurations(folder)


def open_pipeline(
    source: str | DiffusionPipeline,
    *,
    transformer: str | Path | None = None,
    transformer_2: str | Path | None = None,
    part: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    stream: bool | None = False,
    transformer_alone: bool = False,
    text_encoders: Mapping[str, torch.nn.Module] | None = None,
    **call: Any,
) -> OpenPipeline:
    """Load a pipeline, with another transformer in place of its own if one is given.

    Args:
        source: a folder, a hub id, the word of a demo, or a loaded pipeline; that one is taken as it is, with its own
            dtype and device, and only `part` and `call` are looked at beside it.
        text_encoders: part → text encoder in place of the pipeline's own; it stays on the device where it is.
        transformer: a folder, see `load_transformer`; it takes the place of the one that is meant.
        transformer_2: the same in the place of the pipeline's second, whichever is meant.
        part: which transformer is meant where a pipeline has two, "transformer" (more noise) or "transformer_2".
        stream: leave the blocks of the transformers on disk; one at a time is read when it runs. None: if the memory
            that is free now calls for it.
        transformer_alone: without text encoders and VAE: it can be quantized without samples, but makes no videos.
        call: arguments of each call (num_inference_steps, guidance_scale, height, width, num_frames …);
            None stands for the pipeline's own default.

    Raises:
        PipelineError: see `locate`; also a folder that diffusers cannot load.
    """
    if isinstance(source, DiffusionPipeline):
        return _open_loaded(source, part, call)
    folder, meant = locate(source, part), part or PARTS[0]
    if transformer_2 is not None:
        check_folder(folder, PARTS[1])
    given = text_encoders or {}
    parts: dict[str, Any] = dict(given)
    streams: dict[str, BlockStream] = {}
    index = json.loads((folder / "model_index.json").read_text())
    if transformer_alone:
        parts |= {name: None for name, entry in index.items() if isinstance(entry, list) and name != meant}
    replacements = {meant: transformer} if transformer is not None else {}
    replacements |= {PARTS[1]: transformer_2} if transformer_2 is not None else {}
    for place, other in replacements.items():
        check_replacement(Path(other), folder, place)
    for place, other in replacements.items():
        parts[place] = load_transformer(other, dtype)
    if transformer is None and stream is not False:
        own = [name for name in PARTS if index.get(name, [None])[0] is not None and name not in parts]
        files = {name: weight_files(folder / name) for name in own}
        try:
            if stream or should_stream([*chain(*files.values())], dtype, _free_bytes(device)):
                for name, paths in files.items():
                    parts[name], streams[name] = open_streamed(folder / name, paths, dtype, device)
        except StreamingError as error:
            raise PipelineError(f"diffusers cannot load {source}: {error}") from None
    try:
        # By the class itself: the base class passes over a given transformer where the class calls it optional (Wan).
        pipe = pipeline_class(folder).from_pretrained(folder, dtype=dtype, **parts)
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(f"diffusers cannot load {source}: {error}") from error
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and name not in given and name not in streams:
            component.to(device)
    pipe.set_progress_bar_config(disable=True)
    defaults = default_call(source, folder)
    chosen = checked_call(pipe, getattr(pipe, meant), call)
    family = replace(resolve(getattr(pipe, meant)), pipeline=type(pipe).__name__)
    if family.tiled_vae:
        pipe.vae.enable_tiling()
    return OpenPipeline(source, folder, pipe, family, defaults | chosen, streams.get(meant), meant)


def _open_loaded(pipe: DiffusionPipeline, part: str | None, call: Mapping[str, Any]) -> OpenPipeline:
    meant, family = check_loaded(pipe, part)
    transformer = getattr(pipe, meant)
    chosen = _own_call(transformer.config, family) | checked_call(pipe, transformer, call)
    return OpenPipeline(IN_MEMORY, None, pipe, family, chosen, None, meant)


def _free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def default_call(source: str, folder: Path) -> dict[str, Any]:
    """How s2q calls a pipeline when nothing else is asked for, where that differs from the pipeline's own defaults."""
    defaults: dict[str, Any] = {}
    if source in DEMOS:
        from s2q.demo import GENERATION

        defaults |= GENERATION[DEMOS[source]]
    config = json.loads((folder / "transformer" / "config.json").read_text())
    return defaults | _own_call(config, resolve_folder(folder / "transformer", config["_class_name"]))


def _own_call(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    # diffusers' default of 226 text tokens fits the released CogVideoX; positions of others have another length.
    length = {"max_sequence_length": config[family.text_length]} if family.text_length in config else {}
    return dict(family.call) | length


def load_transformer(folder: str | Path, dtype: torch.dtype) -> torch.nn.Module:
    """The transformer in `folder`, quantized or not.

    Raises:
        PipelineError: no transformer there, or another class.
        CheckpointError: an s2q checkpoint that is incomplete or damaged.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise PipelineError(f"{folder} has no config.json, so it is not a transformer folder")
    name = str(json.loads(config.read_text()).get("_class_name"))
    try:
        resolve_folder(folder, name)
    except ValueError as error:
        raise PipelineError(f"{folder}: {error}") from None
    return getattr(diffusers, name).from_pretrained(folder, dtype=dtype)
