"""What a pipeline's calls want beside the words of a prompt, and whether prompts have it."""

import inspect
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from s2q.media import INPUTS, media_of, read_media

_LOG = logging.getLogger(__name__)

LEAST_STRETCH = 0.02
"""Difference of shapes that is worth a warning: less comes of sizes being whole patches."""
FRAMES = ("num_frames", "video_length")
"""What pipelines call the length of the video that they make."""
VIDEOS = ("video", "control_video", "pose_video")
"""What pipelines call the video that they make another of."""
ALWAYS_NEEDED = ("id_cond", "id_vit_hidden")
"""Arguments without which nothing is made although they have a default: the face that ConsisID finds in its image."""
NOT_OF_THE_CLIPS_SHAPE = ("face_video",)


@dataclass(frozen=True)
class Inputs:
    """What a pipeline's calls take beside a prompt."""

    needed: tuple[tuple[str, ...], ...]
    """Arguments without which it makes nothing; of those that stand together, one is enough."""
    allowed: tuple[str, ...]
    """All of `s2q.media.INPUTS` that it takes."""
    unknown: tuple[str, ...]
    """Arguments without which it makes nothing, and that s2q cannot read from a file."""

    def says(self) -> str:
        """What is needed, in words."""
        return " and ".join(" or ".join(group) for group in self.needed)


def inputs_of(pipeline: type[DiffusionPipeline]) -> Inputs:
    """What the calls of a class of pipelines take, from their signature.

    diffusers gives most arguments a default of None, also where nothing can be made without them. A control is always
    needed; a video is where the pipeline has no length of its own to make; so is an image (or a video, where it may stand
    for one) where neither is, unless the signature says that it may be None (Cosmos 2.5).
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    # Files are read as pictures, not as the tensors that EasyAnimate wants.
    readable = [name for name in INPUTS if name in parameters and parameters[name].annotation is not torch.FloatTensor]
    without_default = [
        name
        for name, parameter in parameters.items()
        if name not in ("self", "prompt")
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    without_default += [name for name in ALWAYS_NEEDED if name in parameters]
    needed = [(name,) for name in without_default if name in readable]
    if not without_default:
        if "control_video" in parameters:
            needed = [("control_video",)]
        elif "video" in parameters and not has_length(pipeline):
            needed = [("video",)]
        elif "image" in parameters and type(None) not in get_args(parameters["image"].annotation):
            needed = [tuple(name for name in ("image", "video") if name in parameters)]
    unread = [name for name in (*without_default, *itertools.chain(*needed)) if name not in readable]
    return Inputs(tuple(needed), tuple(readable), tuple(unread))


def has_length(pipeline: type[DiffusionPipeline]) -> bool:
    """Whether a class of pipelines is told how long a video to make; else it makes one as long as that it is given."""
    return any(name in inspect.signature(pipeline.__call__).parameters for name in FRAMES)


def longest(prompts: Sequence[str]) -> int | None:
    """Frames of the longest video among the files of `prompts`; None where there is no video.

    Raises:
        ValueError: a file that cannot be read.
    """
    read = [value for prompt in prompts for name, value in read_media(prompt).items() if name in VIDEOS]
    return max(map(len, read), default=None)


def check_prompts(
    pipeline: type[DiffusionPipeline], prompts: Sequence[str], size: tuple[int, int] | None = None
) -> None:
    """Whether `pipeline` can be called with each of `prompts`: nothing is missing, too much, or unreadable.

    Args:
        size: height and width of the video; pictures of another shape, which pipelines stretch, are warned of.

    Raises:
        ValueError: with everything that is wrong, in all of them.
    """
    inputs, name = inputs_of(pipeline), pipeline.__name__
    given = [media_of(prompt) for prompt in prompts]
    if inputs.needed and not any(given):
        line = {"prompt": "a dog runs"} | {group[0]: INPUTS[group[0]].example for group in inputs.needed}
        raise ValueError(
            f"{name} wants {inputs.says()} with each prompt, and these have none (those that come with s2q are words "
            f"alone). Give a file of prompts, one line of JSON each, such as {json.dumps(line)}; to s2q generate give "
            f"--input {inputs.needed[0][0]}={line[inputs.needed[0][0]]}"
        )
    wrong = []
    for number, media in enumerate(given, 1):
        missing = [group for group in inputs.needed if not any(argument in media for argument in group)]
        wrong += [f"prompt {number} has no {' or '.join(group)}" for group in missing]
        wrong += [f"prompt {number} has {key}" for key in media if key not in inputs.allowed]
    if wrong:
        takes = ", ".join(inputs.allowed) or "words alone"
        raise ValueError(f"{name} takes {takes}; {'; '.join(wrong)}")
    for prompt in prompts:
        for key, paths in media_of(prompt).items():
            try:
                read = INPUTS[key].read(paths)
            except ValueError as error:
                wrong.append(f"{key} {error}")
                continue
            first = read[0] if isinstance(read, list) else read
            if size is None or key in NOT_OF_THE_CLIPS_SHAPE or not isinstance(first, Image.Image):
                continue
            if abs(first.width * size[0] / (first.height * size[1]) - 1) > LEAST_STRETCH:
                _LOG.warning(
                    "%s %s is %d×%d and the video %d×%d: pipelines stretch it. Cut it to shape for a true picture",
                    key, paths[0], first.width, first.height, size[1], size[0],
                )  # fmt: skip
    if wrong:
        raise ValueError("; ".join(dict.fromkeys(wrong)))
