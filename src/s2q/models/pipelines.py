"""Open a diffusers pipeline: a folder, a hub id, or the word `demo`, with clear errors before anything is loaded."""

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError

from s2q.models.family import Family, patch_of
from s2q.models.lookup import resolve, resolve_folder
from s2q.models.streaming import BlockStream, StreamingError, open_streamed, should_stream

DEMO = "demo"
FRAMES = ("num_frames", "video_length")
"""What pipelines call the length of the video that they make."""
DEMOS = {DEMO: "cogvideox", "demo-wan": "wan", "demo-hunyuanvideo": "hunyuanvideo"}
"""The words that stand for a demo pipeline, and the name that `s2q.demo` knows each by."""


class PipelineError(ValueError):
    """A pipeline that cannot be used, with what was seen and what to do."""


@dataclass
class OpenPipeline:
    """A loaded pipeline, and how it is to be called."""

    source: str
    """What the user named."""
    folder: Path
    """Where it stands on this machine."""
    pipe: DiffusionPipeline
    family: Family
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call: size, steps, guidance."""
    stream: BlockStream | None = None
    """Where the transformer's blocks are read from, if they are not in memory."""
    disposable_text: bool = False
    """Whether text encoders may leave for good when the prompts are encoded: nobody calls the pipeline afterwards."""

    @contextmanager
    def held(self, block: torch.nn.Module) -> Iterator[None]:
        """Inside, the weights of a block of the pipeline's own transformer are in memory."""
        with nullcontext() if self.stream is None else self.stream.held(block):
            yield

    @contextmanager
    def using(self, transformer: torch.nn.Module) -> Iterator[None]:
        """Inside, the pipeline runs with `transformer`; afterwards it has its own again."""
        own = self.pipe.transformer
        self.pipe.transformer = transformer
        try:
            yield
        finally:
            self.pipe.transformer = own

    @property
    def steps(self) -> int:
        """Denoising steps of a call, T."""
        return self._argument("num_inference_steps")

    @property
    def guidance_scale(self) -> float | None:
        """Scale of classifier-free guidance; None where the transformer runs once a step."""
        if self.family.guidance is None:
            return None
        scale = self._argument(self.family.guidance)
        return scale if scale > 1 else None

    def _argument(self, name: str) -> Any:
        default = inspect.signature(self.pipe.__call__).parameters[name].default
        return self.call.get(name, default)


def locate(source: str) -> Path:
    """The local folder of the pipeline that `source` names; a hub id is downloaded (resumed, if it was broken off).

    Raises:
        PipelineError: a folder that is missing, incomplete, or no pipeline.
    """
    if source in DEMOS:
        from s2q.demo import pipeline_dir

        try:
            return pipeline_dir(DEMOS[source])
        except FileNotFoundError as error:
            raise PipelineError(str(error)) from None
    path = Path(source)
    if path.is_dir():
        _check_folder(path)
        return path
    looks_like_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix
    if path.exists() or not looks_like_hub_id:
        raise PipelineError(
            f"{source} is not a folder. Give a diffusers pipeline folder, a hub id such as "
            f"THUDM/CogVideoX-2b, or one of the words {', '.join(DEMOS)}."
        )
    try:
        folder = Path(DiffusionPipeline.download(source))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise PipelineError(f"{source} cannot be had from the hub (absent, gated, or no network): {error}") from error
    _check_folder(folder)
    return folder


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        hint = " (this is one component; give the folder above it)" if (path / "config.json").is_file() else ""
        raise PipelineError(f"{path} has no model_index.json, so it is not a diffusers pipeline{hint}")
    try:
        parts = json.loads(index.read_text())
    except ValueError as error:
        raise PipelineError(f"{index} is not valid JSON: {error}") from None
    if "transformer" not in parts:
        raise PipelineError(f"{path} ({parts.get('_class_name')}) has no transformer: s2q quantizes video transformers")
    _check_call(path, str(parts.get("_class_name")))
    try:
        resolve_folder(path / "transformer", str(parts["transformer"][1]))
    except (ValueError, OSError) as error:
        raise PipelineError(str(error)) from None
    if parts.get("transformer_2", [None])[0] is not None:
        raise PipelineError(f"{path} denoises with two transformers (transformer_2): s2q quantizes pipelines with one")
    wrong = []
    for name, entry in parts.items():
        if isinstance(entry, list) and entry[0] is not None:
            wrong += _missing_files(path / name)
    if wrong:
        raise PipelineError(f"{path} is incomplete, perhaps half downloaded: {'; '.join(wrong)}")


def _check_call(path: Path, name: str) -> None:
    """Whether the pipeline makes a video of a prompt and nothing else."""
    pipeline = getattr(diffusers, name, None)
    if pipeline is None:
        raise PipelineError(f"{path} is a {name}, which this diffusers ({diffusers.__version__}) does not have")
    parameters = inspect.signature(pipeline.__call__).parameters
    more = [
        key
        for key, parameter in parameters.items()
        if key not in ("self", "prompt")
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    # Pipelines with an image were made for one, even where its default is none; those that change a video take its length.
    length = any(key in parameters for key in FRAMES)
    others = ("image",) if length else ("image", "video", "control_video")
    more += [key for key in others if key in parameters and key not in more]
    if not more and not length:
        raise PipelineError(f"{path} is a {name}, which makes no video: its calls take none of {', '.join(FRAMES)}")
    if "prompt" not in parameters or more:
        raise PipelineError(
            f"{path} is a {name}, which wants more than a prompt ({', '.join(more) or 'and takes none'}): s2q calls "
            "text-to-video pipelines alone. A transformer that it shares with one of those can be quantized there, and "
            "given to it with transformer="
        )
    if "callback_on_step_end" not in parameters:
        raise PipelineError(f"{path} is a {name}, which does not say when a step ends (callback_on_step_end)")


def _missing_files(component: Path) -> list[str]:
    if not component.is_dir():
        return [f"folder {component.name} is missing"]
    if any(component.rglob("*.incomplete")):
        return [f"{component.name} has unfinished downloads"]
    missing = []
    for index in component.glob("*.safetensors.index.json"):
        shards = set(json.loads(index.read_text())["weight_map"].values())
        missing += [
            f"{component.name}/{shard} is missing" for shard in sorted(shards) if not (component / shard).exists()
        ]
    has_weights = any(component.glob("*.safetensors")) or any(component.glob("*.bin"))
    if (component / "config.json").is_file() and not has_weights:
        missing.append(f"{component.name} has no weights")
    if component.name == "transformer" and has_weights and not missing and not weight_files(component):
        missing.append(
            "transformer has no diffusion_pytorch_model.safetensors (other formats and variants are not read)"
        )
    return missing


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers model, in order of name: the shards of its index, or the one file."""
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        return sorted({folder / shard for shard in json.loads(index.read_text())["weight_map"].values()})
    single = folder / "diffusion_pytorch_model.safetensors"
    return [single] if single.is_file() else []


def open_pipeline(
    source: str,
    *,
    transformer: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    stream: bool | None = False,
    transformer_alone: bool = False,
    **call: Any,
) -> OpenPipeline:
    """Load a pipeline, with another transformer in place of its own if one is given.

    Args:
        stream: leave the blocks of the transformer on disk; one at a time is read when it runs. None: if the memory
            that is free now calls for it.
        transformer_alone: without text encoders and VAE: it can be quantized without samples, but makes no videos.
        call: arguments of each call (num_inference_steps, guidance_scale, height, width, num_frames …);
            None stands for the pipeline's own default.

    Raises:
        PipelineError: see `locate`; also a folder that diffusers cannot load.
    """
    folder = locate(source)
    parts: dict[str, Any] = {}
    blocks = None
    index = json.loads((folder / "model_index.json").read_text())
    if transformer_alone:
        parts |= {name: None for name, entry in index.items() if isinstance(entry, list) and name != "transformer"}
    if transformer is not None:
        parts["transformer"] = load_transformer(transformer, dtype)
    elif stream is not False:
        files = weight_files(folder / "transformer")
        try:
            if stream or should_stream(files, dtype, _free_bytes(device)):
                parts["transformer"], blocks = open_streamed(folder / "transformer", files, dtype, device)
        except StreamingError as error:
            raise PipelineError(f"diffusers cannot load {source}: {error}") from None
    try:
        # By the class itself: the base class passes over a given transformer where the class calls it optional (Wan).
        pipe = getattr(diffusers, index["_class_name"]).from_pretrained(folder, dtype=dtype, **parts)
    except (OSError, ValueError, KeyError) as error:
        raise PipelineError(f"diffusers cannot load {source}: {error}") from error
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module) and (component is not pipe.transformer or blocks is None):
            component.to(device)
    pipe.set_progress_bar_config(disable=True)
    defaults = default_call(source, folder)
    _check_size(pipe, call)
    chosen = {name: value for name, value in call.items() if value is not None}
    family = replace(resolve(pipe.transformer), pipeline=type(pipe).__name__)
    if family.tiled_vae:
        pipe.vae.enable_tiling()
    return OpenPipeline(source, folder, pipe, family, defaults | chosen, blocks)


def _free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def _check_size(pipe: DiffusionPipeline, call: Mapping[str, Any]) -> None:
    ratios = (getattr(pipe, name, None) for name in ("vae_scale_factor_spatial", "vae_spatial_compression_ratio"))
    spatial, patch = next((ratio for ratio in ratios if ratio), 8), patch_of(pipe.transformer.config)
    multiples = {"height": spatial * patch[1], "width": spatial * patch[2]}
    wrong = [name for name, multiple in multiples.items() if call.get(name) and call[name] % multiple]
    if wrong:
        said = " and ".join(f"{name} {call[name]}" for name in wrong)
        allowed = " and ".join(str(multiple) for multiple in sorted({multiples[name] for name in wrong}))
        raise PipelineError(f"{said}: this pipeline makes only multiples of {allowed} pixels")


def default_call(source: str, folder: Path) -> dict[str, Any]:
    """How s2q calls a pipeline when nothing else is asked for, where that differs from the pipeline's own defaults."""
    defaults: dict[str, Any] = {}
    if source in DEMOS:
        from s2q.demo import GENERATION

        defaults |= GENERATION[DEMOS[source]]
    # diffusers' default of 226 text tokens fits the released CogVideoX; positions of others have another length.
    config = json.loads((folder / "transformer" / "config.json").read_text())
    key = resolve_folder(folder / "transformer", config["_class_name"]).text_length
    if key in config:
        defaults["max_sequence_length"] = config[key]
    return defaults


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
