"""The world the demo pipeline knows: one coloured shape doing one thing on a plain background.

Every scene has a caption in a fixed order of fixed words, so a caption says everything there is to say about the
clip and a rule can read it back (see :mod:`s2q.demo.readback`).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FRAMES = 9
SIZE = 32

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 185, 45),
    "blue": (40, 75, 235),
    "yellow": (240, 215, 30),
    "pink": (245, 90, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "grey": (125, 125, 125),
    "white": (240, 240, 240),
    "brown": (95, 58, 28),
}
SHAPES = ("square", "triangle", "cross")
# Motion -> (dx, dy): the direction of travel in image coordinates (y points down); None where the size changes.
MOTIONS: dict[str, tuple[int, int] | None] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
    "grows": None,
    "shrinks": None,
}

# Half the width of a shape in pixels. Large, since a shape must still be told apart after 4x spatial compression.
MOVING_HALF_WIDTH = (5.5, 7.5)
SMALL_HALF_WIDTH = (3.5, 4.5)
LARGE_HALF_WIDTH = (8.0, 9.5)
TRAVEL = (9.0, 13.0)
MARGIN = 1.0
OBJECT_SHADE = (0.85, 1.0)
BACKGROUND_SHADE = (0.9, 1.05)

_HELDOUT_COUNT = 72
_SPLIT_SEED = 2026


@dataclass(frozen=True, order=True)
class Scene:
    """What a clip shows; each field is a word or two of its caption."""

    shape: str
    colour: str
    background: str
    motion: str

    def __post_init__(self) -> None:
        for field, known in (
            ("shape", SHAPES),
            ("colour", COLOURS),
            ("background", BACKGROUNDS),
            ("motion", MOTIONS),
        ):
            if (value := getattr(self, field)) not in known:
                raise ValueError(f"unknown {field} {value!r}; known: {', '.join(known)}")

    @property
    def caption(self) -> str:
        """The prompt for this scene, e.g. ``a red square moves left on a grey background``."""
        return f"a {self.colour} {self.shape} {self.motion} on a {self.background} background"

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """Read a caption back; raises ``ValueError`` for anything :attr:`caption` cannot have written."""
        match caption.split():
            case ["a", colour, shape, *motion, "on", "a", background, "background"]:
                return cls(shape=shape, colour=colour, background=background, motion=" ".join(motion))
        raise ValueError(f"not a caption of this world: {caption!r}")


def all_scenes() -> tuple[Scene, ...]:
    """Every combination, in a fixed order."""
    return tuple(Scene(*words) for words in itertools.product(SHAPES, COLOURS, BACKGROUNDS, MOTIONS))


def words() -> list[str]:
    """Every word of every caption, sorted."""
    return sorted({word for scene in all_scenes() for word in scene.caption.split()})


def _split() -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    shuffled = list(all_scenes())
    random.Random(_SPLIT_SEED).shuffle(shuffled)
    return tuple(shuffled[_HELDOUT_COUNT:]), tuple(shuffled[:_HELDOUT_COUNT])


def training_scenes() -> tuple[Scene, ...]:
    """The combinations the pipeline was trained on. Disjoint from :func:`heldout_scenes`."""
    return _split()[0]


def heldout_scenes() -> tuple[Scene, ...]:
    """Combinations never trained on, although every single word of them was."""
    return _split()[1]


def _draw(scenes: Sequence[Scene], count: int, seed: int) -> list[str]:
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    generator = random.Random(seed)
    drawn: list[Scene] = []
    while len(drawn) < count:  # each scene once before any comes twice
        drawn += generator.sample(scenes, min(len(scenes), count - len(drawn)))
    return [scene.caption for scene in drawn]


def calibration_prompts(count: int, seed: int = 0) -> list[str]:
    """``count`` captions of training scenes: the same for the same seed, and no repeats before all were drawn."""
    return _draw(training_scenes(), count, seed)


def evaluation_prompts(count: int, seed: int = 0) -> list[str]:
    """``count`` captions of held-out scenes: the same for the same seed, and no repeats before all were drawn."""
    return _draw(heldout_scenes(), count, seed)


def coverage(shapes: Sequence[str], centre: torch.Tensor, half_width: torch.Tensor) -> torch.Tensor:
    """How much of each pixel a shape covers, antialiased.

    Args:
        shapes: N names out of :data:`SHAPES`.
        centre: float [N, F, 2], the middle of the shape's bounding square as (x, y) in pixels.
        half_width: float [N, F], half the side of that square in pixels.

    Returns:
        float [N, F, SIZE, SIZE] in 0..1.
    """
    pixel = torch.arange(SIZE, dtype=centre.dtype) + 0.5
    x = pixel.view(1, 1, 1, -1) - centre[..., 0, None, None]
    y = pixel.view(1, 1, -1, 1) - centre[..., 1, None, None]
    width = half_width[..., None, None]
    bar = width / 3
    # Signed distances to the edge (negative inside), exact near the edges, which is all that antialiasing needs.
    square = torch.maximum(x.abs(), y.abs()) - width
    slant = (2 * x.abs() - y - width) / 5**0.5
    triangle = torch.maximum(slant, y - width)
    cross = torch.minimum(torch.maximum(x.abs() - width, y.abs() - bar), torch.maximum(x.abs() - bar, y.abs() - width))
    kind = torch.tensor([SHAPES.index(shape) for shape in shapes]).view(-1, 1, 1, 1)
    distance = torch.where(kind == 0, square, torch.where(kind == 1, triangle, cross))
    return (0.5 - distance).clamp(0, 1)


def _paths(scenes: Sequence[Scene], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random centres [N, F, 2] and half widths [N, F] which keep the whole path inside the frame."""
    count = len(scenes)

    def uniform(low: torch.Tensor | float, high: torch.Tensor | float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    progress = torch.linspace(0, 1, FRAMES)
    moving = uniform(*MOVING_HALF_WIDTH, count, 1).expand(-1, FRAMES)
    small, large = uniform(*SMALL_HALF_WIDTH, count, 1), uniform(*LARGE_HALF_WIDTH, count, 1)
    growing = small + (large - small) * progress
    direction = torch.tensor([MOTIONS[scene.motion] or (0, 0) for scene in scenes], dtype=torch.float32)
    sign = torch.tensor([{"grows": 1, "shrinks": -1}.get(scene.motion, 0) for scene in scenes]).view(-1, 1)
    half_width = torch.where(sign > 0, growing, torch.where(sign < 0, growing.flip(1), moving))

    travel = direction * uniform(*TRAVEL, count, 1)
    room = half_width.amax(1, keepdim=True) + MARGIN
    low = room + (-travel).clamp(min=0)
    start = uniform(low, SIZE - room - travel.clamp(min=0), count, 2)
    return start[:, None] + travel[:, None] * progress.view(1, -1, 1), half_width


def render_batch(scenes: Sequence[Scene], generator: torch.Generator) -> torch.Tensor:
    """Draw one clip per scene, with random place, size, speed and shade.

    Returns:
        uint8 [N, FRAMES, SIZE, SIZE, 3].
    """
    count = len(scenes)
    centre, half_width = _paths(scenes, generator)
    alpha = coverage([scene.shape for scene in scenes], centre, half_width)[..., None]

    def shaded(palette: dict[str, tuple[int, int, int]], names: list[str], low: float, high: float) -> torch.Tensor:
        base = torch.tensor([palette[name] for name in names], dtype=torch.float32).view(-1, 1, 1, 1, 3)
        return base * (low + (high - low) * torch.rand(count, 1, 1, 1, 1, generator=generator))

    colour = shaded(COLOURS, [scene.colour for scene in scenes], *OBJECT_SHADE)
    background = shaded(BACKGROUNDS, [scene.background for scene in scenes], *BACKGROUND_SHADE)
    return (alpha * colour + (1 - alpha) * background).round().clamp(0, 255).to(torch.uint8)


def render(scene: Scene, generator: torch.Generator) -> torch.Tensor:
    """Draw one clip of ``scene``: uint8 [FRAMES, SIZE, SIZE, 3]."""
    return render_batch([scene], generator)[0]
