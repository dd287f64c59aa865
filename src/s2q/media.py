"""Prompts with an image, a video or a control beside the words: which files, and how they are read."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2q.evaluation.video import read_clip
from s2q.storage import file_digest

IMAGE_SUFFIXES = tuple(sorted(Image.registered_extensions()))


class Prompt(str):
    """The words of a prompt, and the files that go with them.

    It is its words wherever words are wanted. `media` holds a path, or several, by the argument of the pipeline that
    takes what is in them, see `INPUTS`.
    """

    media: Mapping[str, tuple[Path, ...]]

    def __new__(cls, words: str, **media: str | Path | Iterable[str | Path]) -> "Prompt":
        """Make one: `Prompt("a dog runs", image="dog.png")`."""
        made = super().__new__(cls, words)
        made.media = {name: _paths(given) for name, given in media.items()}
        return made


def _paths(given: str | Path | Iterable[str | Path]) -> tuple[Path, ...]:
    return (Path(given),) if isinstance(given, str | Path) else tuple(Path(path) for path in given)


def media_of(prompt: str) -> Mapping[str, tuple[Path, ...]]:
    """The files of a prompt by the pipeline's argument; none where it is words alone."""
    return getattr(prompt, "media", {})


def read_media(prompt: str) -> dict[str, Any]:
    """What the pipeline is given beside the words of `prompt`, by its arguments.

    Raises:
        ValueError: a file that is missing or cannot be read, or an argument that is not one of `INPUTS`.
    """
    return {name: INPUTS[name].read(paths) for name, paths in media_of(prompt).items()}


def described(prompt: str) -> str | dict[str, Any]:
    """JSON-like: a prompt's words, and where it has files, their content by SHA-256."""
    if not media_of(prompt):
        return str(prompt)
    return {"prompt": str(prompt)} | {name: list(map(_digest, paths)) for name, paths in media_of(prompt).items()}


def _digest(path: Path) -> str:
    if not path.is_dir():
        return file_digest(path)
    return hashlib.sha256("".join(map(file_digest, _frame_files(path))).encode()).hexdigest()


def read_image(path: Path) -> Image.Image:
    """An image as RGB, turned as its camera was held.

    Raises:
        ValueError: it is missing or no image.
    """
    from diffusers.utils import load_image

    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return load_image(str(path))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def read_frames(path: Path) -> list[Image.Image]:
    """The frames of a video file, or the images of a folder in the order of their names.

    Raises:
        ValueError: it is missing, no video, or a folder without images.
    """
    if path.is_dir():
        frames = [read_image(file) for file in _frame_files(path)]
        if not frames:
            raise ValueError(f"{path} holds no images")
        if len({frame.size for frame in frames}) > 1:
            raise ValueError(f"the images in {path} have different sizes")
        return frames
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return [Image.fromarray(frame) for frame in read_clip(path)]
    except (OSError, ValueError, IndexError) as error:  # PyAV's errors are both of the first; a file without pictures
        raise ValueError(f"{path} cannot be read as a video: {error}") from None


def read_tensors(path: Path, name: str) -> tuple[Tensor, ...]:
    """What a safetensors file holds under `name`, or under `name.0`, `name.1` and so on.

    Raises:
        ValueError: it is missing or no such file, or holds none of that name.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, "pt") as file:
            places = {key: key.removeprefix(name) for key in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
            numbers = {int(place[1:] or 0): key for key, place in places.items() if re.fullmatch(r"(\.\d+)?", place)}
            found = tuple(file.get_tensor(numbers[number]) for number in sorted(numbers))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    if not found:
        raise ValueError(f"{path} has no tensor {name}, nor {name}.0: it has {', '.join(sorted(places)) or 'none'}")
    return found


def _frame_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _one(read: Callable[[Path], Any]) -> Callable[[tuple[Path, ...]], Any]:
    def read_it(paths: tuple[Path, ...]) -> Any:
        if len(paths) != 1:
            raise ValueError(f"one file is wanted, got {len(paths)}")
        return read(paths[0])

    return read_it


@dataclass(frozen=True)
class Input:
    """How one argument of pipelines is given."""

    example: str
    """A file's name."""
    read: Callable[[tuple[Path, ...]], Any]


def _one_tensor(path: Path) -> Tensor:
    found = read_tensors(path, "id_cond")
    if len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} tensors id_cond, and one is wanted")
    return found[0]


_IMAGE = Input("dog.png", _one(read_image))
_VIDEO = Input("dog.mp4", _one(read_frames))
INPUTS: dict[str, Input] = {
    "image": _IMAGE,
    "last_image": _IMAGE,
    "reference_images": Input("dog.png", lambda paths: [read_image(path) for path in paths]),
    "video": _VIDEO,
    "control_video": _VIDEO,
    "pose_video": _VIDEO,
    "face_video": _VIDEO,
    "background_video": _VIDEO,
    "mask": _VIDEO,
    "mask_video": _VIDEO,
    # What ConsisID's helpers find of the face in its image, as they return it.
    "id_cond": Input("face.safetensors", _one(_one_tensor)),
    "id_vit_hidden": Input("face.safetensors", _one(lambda path: read_tensors(path, "id_vit_hidden"))),
}
"""What can be given beside the words, by the argument of diffusers' pipelines that takes it."""
