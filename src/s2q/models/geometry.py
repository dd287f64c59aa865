"""How large things are: the latent, its tokens, the text and the guidance branches, from configurations alone."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from s2q.models.family import Family, patch_of

# Of T5, where a pipeline leaves no choice (Latte, EasyAnimate).
TEXT_TOKENS = 120


@dataclass(frozen=True)
class Geometry:
    """Sizes of one call of a pipeline."""

    latent: tuple[int, int, int]
    """Frames, height and width of the latent."""
    grid: tuple[int, int, int]
    """The same in tokens."""
    text: int
    """Text tokens of a branch, padding included."""
    text_is_joined: bool
    """Whether text takes part in self-attention; else it is seen through cross-attention."""
    branches: int
    """Rows that the transformer is given in a step: guidance branches, 1 or 2, and those of further calls."""
    steps: int

    @property
    def video(self) -> int:
        """Video tokens of a branch."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """Tokens of a branch in self-attention, S."""
        return self.video + (self.text if self.text_is_joined else 0)


def call_defaults(family: Family) -> dict[str, Any]:
    """What the family's pipeline takes when it is called, and its defaults."""
    parameters = inspect.signature(getattr(diffusers, family.pipeline).__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def denoising_steps(arguments: Mapping[str, Any], temporal: int) -> int:
    """Steps of a call with these arguments, T: a pipeline that changes a video leaves out the first, by its strength.

    One that makes it in sections (Framepack, Wan Animate) goes through all for each.

    Args:
        temporal: see `vae_factors`.
    """
    steps = int(arguments["num_inference_steps"])
    strength = arguments.get(
        "denoise_strength", arguments.get("strength")
    )  # LTX calls by the second how firm an image is
    if strength is not None:
        return min(int(steps * strength), steps)
    return steps * _sections(arguments, temporal)


def _sections(arguments: Mapping[str, Any], temporal: int) -> int:
    """How many sections a clip is made in; one, where its length is known from a prompt's files alone."""
    frames = arguments.get("num_frames")
    if frames and "latent_window_size" in arguments:  # Framepack
        return -(-frames // ((arguments["latent_window_size"] - 1) * temporal + 1))
    if frames and "segment_frame_length" in arguments:  # Wan Animate begins with the last frames of the section before
        again = arguments["prev_segment_conditioning_frames"]
        return max(1, -(-(frames - again) // (arguments["segment_frame_length"] - again)))
    return 1


def _latent_frames(arguments: Mapping[str, Any], frames: int, temporal: int) -> int:
    """Frames of the latent that the transformer sees at a time."""
    if "latent_window_size" in arguments:
        return arguments["latent_window_size"]
    if "segment_frame_length" in arguments:  # and one of the image
        return (arguments["segment_frame_length"] - 1) // temporal + 2
    return (frames - 1) // temporal + 1


def vae_factors(config: Mapping[str, Any]) -> tuple[int, int]:
    """(frames, pixels) of the video a position of the latent stands for, from a VAE's configuration.

    Keys that an older configuration lacks have the defaults of its class, as when diffusers loads it; what a class works out
    for itself is asked of one without weights. The first frame of the video has a latent frame of its own; a VAE of images
    has one for each.
    """
    model_class = getattr(diffusers, config["_class_name"])
    parameters = inspect.signature(model_class.__init__).parameters
    whole = {name: parameter.default for name, parameter in parameters.items()} | dict(config)
    temporal = whole.get("scale_factor_temporal") or whole.get("temporal_compression_ratio")
    spatial = whole.get("scale_factor_spatial") or whole.get("spatial_compression_ratio")
    if not (temporal and spatial):
        with torch.device("meta"):
            vae = model_class.from_config(dict(config))
        temporal = temporal or getattr(vae, "temporal_compression_ratio", None) or 1
        spatial = spatial or getattr(vae, "spatial_compression_ratio", None)
    return int(temporal), int(spatial or 2 ** (len(whole["block_out_channels"]) - 1))


def token_grid(config: Mapping[str, Any], frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Tokens of a latent of this size along frames, height and width; frames are padded to whole patches."""
    patch = patch_of(config)
    return -(-frames // patch[0]), height // patch[1], width // patch[2]


def latent_size(family: Family, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width of the latents, from the arguments of a call of the transformer."""
    if family.layout == "SC" and "num_frames" in arguments:
        return tuple(int(arguments[name]) for name in ("num_frames", "height", "width"))
    if family.layout == "SC":  # LTX with conditions says where each token is, [B, 3, S]
        return tuple(len(axis.unique()) for axis in arguments["video_coords"][0])
    shape = arguments[family.latents].shape
    return shape[1 + family.layout.index("F")], shape[-2], shape[-1]


def geometry(family: Family, config: Mapping[str, Any], factors: tuple[int, int], call: Mapping[str, Any]) -> Geometry:
    """Sizes of the call `call` of a pipeline; what it leaves open is the pipeline's default, else the model's.

    Args:
        config: of the transformer, with the defaults of its class.
        factors: see `vae_factors`.
    """
    given = {name: value for name, value in call.items() if value is not None}
    # A default of None is the pipeline's way to say that it asks the model, or itself.
    shown = {name: value for name, value in call_defaults(family).items() if value is not None}
    chosen = dict(family.call_defaults) | shown | given
    temporal, spatial = factors
    lengths = ("num_frames", "video_length", "segment_frame_length")
    frames = next((chosen[name] for name in lengths if chosen.get(name)), config.get("sample_frames"))
    if frames is None:
        raise ValueError(
            f"{family.pipeline} makes a video as long as the one that it is given: say how long, num_frames"
        )
    # HunyuanVideo 1.5 makes an image's shape of `target_size` squared pixels; as good as any is the square.
    square = config.get("target_size", 0) // spatial
    height = chosen["height"] // spatial if "height" in chosen else config.get("sample_height") or square
    width = chosen["width"] // spatial if "width" in chosen else config.get("sample_width") or square
    latent = (_latent_frames(chosen, int(frames), temporal), int(height), int(width))
    guided = family.guidance is None or chosen[family.guidance] > 1
    further = sum(any((chosen.get(name) or 0) > least for name in names) for names, least in family.further_calls)
    own_text = config[family.text_length] if family.text_length else None
    return Geometry(
        latent=latent,
        grid=token_grid(config, *latent),
        text=int(given.get("max_sequence_length") or own_text or chosen.get("max_sequence_length", TEXT_TOKENS)),
        text_is_joined="encoder_hidden_states" in family.tokens,
        branches=1 + guided + further,
        steps=denoising_steps(chosen, temporal),
    )
