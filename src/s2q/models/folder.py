"""What must be true of a pipeline's folder, looked at before anything is loaded."""

import inspect
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline

from s2q.checkpoint import PROVENANCE_NAME
from s2q.media import INPUTS
from s2q.models.inputs import FRAMES, VIDEOS, inputs_of
from s2q.models.lookup import resolve_folder

PARTS = ("transformer", "transformer_2")
"""What pipelines call their transformers; the second, where there is one, serves the steps of less noise."""


class PipelineError(ValueError):
    """A pipeline that cannot be used, with what was seen and what to do."""


def check_folder(path: Path, part: str | None) -> None:
    """Whether `path` is a whole pipeline that makes a video of what s2q can give it, with a transformer to be quantized.

    Args:
        part: which of its transformers is meant, see `PARTS`; None is the only one.

    Raises:
        PipelineError: see `check_configurations`; or it has two transformers and none is named, or lacks the one that is;
            or it is incomplete.
    """
    check_part(str(path), check_configurations(path), part)
    wrong = []
    for name, entry in json.loads((path / "model_index.json").read_text()).items():
        if isinstance(entry, list) and entry[0] is not None:
            wrong += _missing_files(path / name)
    if wrong:
        raise PipelineError(f"{path} is incomplete, perhaps half downloaded: {'; '.join(wrong)}")


def check_configurations(path: Path) -> list[str]:
    """Which transformers there are in a pipeline that makes a video of what s2q can give it; looks at no weights.

    Raises:
        PipelineError: it is no such pipeline; or packages that diffusers runs it with are missing; or a transformer has no
            configuration.
    """
    index = path / "model_index.json"
    if not index.is_file():
        hint = " (this is one component; give the folder above it)" if (path / "config.json").is_file() else ""
        raise PipelineError(f"{path} has no model_index.json, so it is not a diffusers pipeline{hint}")
    try:
        parts = json.loads(index.read_text())
    except ValueError as error:
        raise PipelineError(f"{index} is not valid JSON: {error}") from None
    if PARTS[0] not in parts:
        raise PipelineError(f"{path} ({parts.get('_class_name')}) has no transformer: s2q quantizes video transformers")
    _check_call(path, str(parts.get("_class_name")))
    try:
        family = resolve_folder(path / "transformer", str(parts["transformer"][1]))
    except (ValueError, OSError) as error:
        raise PipelineError(str(error)) from None
    missing = [package for package in family.packages if find_spec(package) is None]
    if missing:
        raise PipelineError(
            f"{path} is a {parts['_class_name']}, which diffusers runs with packages that are missing here: "
            f"pip install {' '.join(missing)}"
        )
    there = [name for name in PARTS if parts.get(name, [None])[0] is not None]
    wrong = [f"{name}/config.json is missing" for name in there if not (path / name / "config.json").is_file()]
    if wrong:
        raise PipelineError(f"{path} is incomplete, perhaps half downloaded: {'; '.join(wrong)}")
    return there


def pipeline_class(path: Path) -> type[DiffusionPipeline]:
    """diffusers' class of the pipeline in `path`."""
    return getattr(diffusers, json.loads((path / "model_index.json").read_text())["_class_name"])


def check_part(what: str, there: Sequence[str], part: str | None) -> str:
    """Which of the transformers that are `there` is meant.

    Raises:
        PipelineError: two and none is named, or another one is.
    """
    if len(there) > 1 and part is None:
        raise PipelineError(
            f"{what} denoises with two transformers, of which each serves its own range of noise: quantize one, then the "
            f"other, with part= or s2q quantize --part, {' and '.join(PARTS)}"
        )
    if part is not None and part not in there:
        raise PipelineError(f"{what} has no {part}: it has {', '.join(there)}")
    return part or PARTS[0]


def check_replacement(transformer: Path, pipeline: Path, part: str) -> None:
    """Whether the transformer in a folder can take the place of a pipeline's own.

    Args:
        pipeline: folder of the pipeline.
        part: whose place, see `PARTS`.

    Raises:
        PipelineError: it is of another class; or s2q made it of the pipeline's other transformer.
    """
    own = json.loads((pipeline / part / "config.json").read_text()).get("_class_name")
    try:
        given = json.loads((transformer / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return  # loading it says what is wrong
    if given != own:
        raise PipelineError(
            f"{transformer} is a {given}, and the {part} of {pipeline} is a {own}: give one of that model"
        )
    index = json.loads((pipeline / "model_index.json").read_text())
    provenance = transformer / PROVENANCE_NAME
    if all(name in index for name in PARTS) and provenance.is_file():
        made_of = json.loads(provenance.read_text()).get("part", PARTS[0])
        if made_of != part:
            raise PipelineError(
                f"{transformer} was made of the {made_of} of its pipeline, which serves other steps: it cannot be its {part}"
            )


def _check_call(path: Path, name: str) -> None:
    pipeline = getattr(diffusers, name, None)
    if pipeline is None:
        raise PipelineError(f"{path} is a {name}, which this diffusers ({diffusers.__version__}) does not have")
    packages = getattr(pipeline, "_backends", None)
    if packages:  # a stand-in, which diffusers has in the place of a class whose packages are missing
        raise PipelineError(f"{path} is a {name}, for which diffusers wants these installed: {', '.join(packages)}")
    check_calls(f"{path} is a {name}, which", pipeline)


def _lacks_ftfy(pipeline: type[DiffusionPipeline]) -> bool:
    """Whether it mends prompts with ftfy, unconditionally, and that is not there: diffusers ends in a NameError then."""
    module = sys.modules[pipeline.__module__]
    clean = getattr(module, "basic_clean", None)
    names = clean.__code__.co_names if inspect.isfunction(clean) else ()
    return "ftfy" in names and "is_ftfy_available" not in names and not hasattr(module, "ftfy")


def check_calls(what: str, pipeline: type[DiffusionPipeline]) -> None:
    """Whether a class of pipelines makes a video of a prompt and what can be read from files.

    Args:
        what: begins what is said if it does not.

    Raises:
        PipelineError: it does not.
    """
    if _lacks_ftfy(pipeline):
        raise PipelineError(f"{what} reads its prompts with a package that is missing here: pip install ftfy")
    parameters, inputs = inspect.signature(pipeline.__call__).parameters, inputs_of(pipeline)
    if "prompt" not in parameters or inputs.unknown:
        raise PipelineError(
            f"{what} wants more than a prompt and what s2q reads from files "
            f"({', '.join(inputs.unknown) or 'and takes no prompt'}; known are {', '.join(INPUTS)}). A transformer that it "
            "shares with another pipeline can be quantized there, and given to it with transformer="
        )
    videos = (*FRAMES, *VIDEOS)
    if not any(key in parameters for key in videos):
        raise PipelineError(f"{what} makes no video: its calls take none of {', '.join(videos)}")


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
    if component.name in PARTS and has_weights and not missing and not weight_files(component):
        missing.append(
            f"{component.name} has no diffusion_pytorch_model.safetensors (other formats and variants are not read)"
        )
    return missing


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers model, in order of name: the shards of its index, or the one file."""
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if index.is_file():
        return sorted({folder / shard for shard in json.loads(index.read_text())["weight_map"].values()})
    single = folder / "diffusion_pytorch_model.safetensors"
    return [single] if single.is_file() else []
