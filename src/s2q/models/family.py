"""What s2q knows of an architecture: a few lines of data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """One architecture of video diffusion transformers."""

    name: str
    pipeline: str
    """diffusers' text-to-video pipeline, whose defaults are those of the released models."""
    model_classes: tuple[str, ...]
    block_lists: tuple[str, ...]
    """Attributes of the model that hold its blocks, in the order they run."""
    states: tuple[str, ...]
    """Arguments that flow from block to block, in the order in which a block returns them."""
    tokens: tuple[str, ...]
    """The states in the order in which their tokens stand in self-attention; text may be missing (cross-attention)."""
    self_attention: str
    """Name, inside a block, of the module that computes it."""
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    """Linears, inside a block, that receive the very same tensor; names that a kind of block lacks are passed over."""
    modulation: tuple[str, ...] = ()
    """Globs, inside a block, of the adaLN linears."""
    text_linears: tuple[str, ...] = ()
    """Globs, inside a block, of the linears that see text tokens alone."""
    latents: str = "hidden_states"
    """Argument of the model that holds the noisy latents."""
    timestep: str = "timestep"
    layout: str = "CFhw"
    """Order of channels, frames, height and width in the latents, after the batch; SC where the pipeline has cut them into
    tokens already, and passes num_frames, height and width beside them."""
    batched: tuple[str, ...] = ()
    """Arguments of the model that may have several rows a sample, one for each of its images."""
    shared: tuple[str, ...] = ()
    """Arguments of the model that all guidance branches share, though they have a first dimension of one."""
    packages: tuple[str, ...] = ()
    """What the pipelines or the model import when they run, and diffusers does not bring."""
    text_length: str | None = None
    """Key of the model's configuration that holds the number of text tokens; None: the pipeline alone decides."""
    text_width: str = "text_embed_dim"
    """Key of the model's configuration that holds the channels of the text."""
    guidance: str | None = "guidance_scale"
    """Argument of the pipeline that, above 1, adds the unconditional branch; None: a guider decides."""
    further_calls: tuple[tuple[tuple[str, ...], float], ...] = ()
    """Arguments of the pipeline of which one above a value makes it call its transformer once more in each step."""
    call_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the pipeline's calls that its signature does not show."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of each call of its pipelines, where those of diffusers do not work."""
    tiled_vae: bool = False
    """Whether its VAE decodes in tiles alone."""
    fps: float = 8.0
    """Frames per second of its videos, as diffusers' examples write them."""
    interleaved: bool = False
    """Whether blocks of the lists run in turn, one of each, instead of one list after the other."""

    @property
    def channels(self) -> int:
        """Axis of the channels in the latents, the batch counted."""
        return 1 + self.layout.index("C")

    def is_modulation(self, name: str) -> bool:
        """Whether the linear `name` (inside a block) makes scales and shifts from the timestep."""
        return any(fnmatchcase(name, pattern) for pattern in self.modulation)

    def sees_text_alone(self, name: str) -> bool:
        """Whether the linear `name` (inside a block) receives text tokens and no video tokens."""
        return any(fnmatchcase(name, pattern) for pattern in self.text_linears)

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """(full name, block) of all blocks of `model` in the order they run."""
        lists = [
            [(f"{attribute}.{index}", block) for index, block in enumerate(getattr(model, attribute))]
            for attribute in self.block_lists
        ]
        if self.interleaved:
            lists = [list(turn) for turn in zip(*lists, strict=True)]
        return [item for some in lists for item in some]

    def groups(self, block: nn.Module, keep_float: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        """The linears of `block` that are quantized (all but the globs `keep_float`), those that share an input together."""
        linears = [
            name
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and not any(fnmatchcase(name, pattern) for pattern in keep_float)
        ]
        shared = [tuple(name for name in group if name in linears) for group in self.shared_inputs]
        together = {name for group in shared for name in group}
        return [group for group in shared if group] + [(name,) for name in linears if name not in together]


def patch_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, rows and columns of the latent that make one token, from a transformer's configuration.

    diffusers writes one number, or one number and `patch_size_t`, or all three.
    """
    size = config["patch_size"]
    if isinstance(size, int):
        return config.get("patch_size_t") or 1, size, size
    frames, height, width = size
    return frames, height, width


_REGISTRY: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known.

    Raises:
        ValueError: one of its model classes belongs to another family already.
    """
    for model_class in family.model_classes:
        owner = _REGISTRY.get(model_class)
        if owner is not None and owner != family:
            raise ValueError(f"{model_class} already belongs to family {owner.name!r}")
        _REGISTRY[model_class] = family
    return family


def registered(model_class: str) -> Family | None:
    """The family that is registered for a class name."""
    return _REGISTRY.get(model_class)


def known() -> list[str]:
    """The class names that are registered."""
    return sorted(_REGISTRY)
