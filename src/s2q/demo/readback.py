"""Reads back from a clip's pixels what it shows, by rules alone: no model, nothing learnt, nothing to flatter.

The plain background is the clip's median colour. What differs from it is the object, whose opacity follows for every
pixel from the mix of the two colours. Areas and centroids of that opacity hardly change under blur, so motion is read
from them, and the shape is the one whose ideal outline, placed at each frame's area and centroid, overlaps best.
Wherever the evidence is weak the answer is ``None``, which never matches a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from s2q.demo.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZE, Scene, coverage

# Distances are Euclidean in 8-bit RGB. The nearest two palette entries lie more than twice this far apart.
_BACKGROUND_TOLERANCE = 45.0
_COLOUR_TOLERANCE = 60.0
_LEAST_CONTRAST = 40.0
_LEAST_AREA = 12.0
_LEAST_TRAVEL = 5.0
_MOST_SIDEWAYS = 2.5
_MOST_DRIFT = 2.5
_LEAST_GROWTH = 2.0
_MOST_GROWTH_WHILE_MOVING = 1.5
_LEAST_STEADY_STEPS = 0.75
_LEAST_OVERLAP = 0.6
_LEAST_OVERLAP_LEAD = 0.03
# For a bounding square of half width 1: area, and how far the centroid lies below the middle.
_AREA = {"square": 4.0, "triangle": 2.0, "cross": 20 / 9}
_CENTROID_DROP = {"square": 0.0, "triangle": 1 / 3, "cross": 0.0}


@dataclass(frozen=True)
class Reading:
    """What was read from a clip; ``None`` where the pixels do not say clearly."""

    shape: str | None
    colour: str | None
    background: str | None
    motion: str | None

    def matches(self, scene: Scene) -> dict[str, bool]:
        """Which attributes agree with ``scene``."""
        return {
            name: getattr(self, name) == getattr(scene, name) for name in ("background", "colour", "motion", "shape")
        }


@dataclass(frozen=True)
class _Track:
    """The object through the clip: opacity [F, H, W] in 0..1, area [F], centroid (x, y) [F, 2]."""

    opacity: torch.Tensor
    area: torch.Tensor
    centroid: torch.Tensor


def _nearest(
    colour: torch.Tensor, palette: dict[str, tuple[int, int, int]], tolerance: float, darkest: float
) -> str | None:
    """The palette entry which, at some shade from ``darkest`` to 1.05 of it, comes nearest to ``colour``."""
    best, best_distance = None, tolerance
    for name, entry in palette.items():
        full = torch.tensor(entry, dtype=torch.float32)
        shade = (colour @ full / (full @ full)).clamp(darkest, 1.05)
        distance = float((colour - shade * full).norm())
        if distance < best_distance:
            best, best_distance = name, distance
    return best


def _find_object(frames: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, _Track] | None:
    """The object's colour [3] and its track, or None where nothing stands out in some frame. ``frames``: [F, H, W, 3]."""
    difference = frames - background
    distance = difference.norm(dim=-1)
    strongest = torch.quantile(distance.flatten(), 0.97)
    if strongest < _LEAST_CONTRAST:
        return None
    colour = frames[distance > 0.75 * strongest].median(dim=0).values
    direction = colour - background
    opacity = (difference @ direction / (direction @ direction)).clamp(0, 1)
    opacity = torch.where(opacity > 0.15, opacity, 0)  # noise far from the object would pull the centroid
    area = opacity.sum((1, 2))
    if area.min() < _LEAST_AREA:
        return None
    pixel = torch.arange(SIZE) + 0.5
    x = (opacity.sum(1) * pixel).sum(-1) / area
    y = (opacity.sum(2) * pixel).sum(-1) / area
    return colour, _Track(opacity, area, torch.stack([x, y], dim=-1))


def _motion(track: _Track) -> str | None:
    """The one motion the whole track agrees with."""
    travel = track.centroid[-1] - track.centroid[0]
    growth = float(track.area[-1] / track.area[0])
    if 1 / _MOST_GROWTH_WHILE_MOVING < growth < _MOST_GROWTH_WHILE_MOVING:
        for name, direction in MOTIONS.items():
            if direction is None:
                continue
            along = torch.tensor(direction, dtype=torch.float32)
            across = along.flip(0)
            steady = ((track.centroid.diff(dim=0) @ along) > 0).float().mean()
            if (
                travel @ along > _LEAST_TRAVEL
                and abs(travel @ across) < _MOST_SIDEWAYS
                and steady >= _LEAST_STEADY_STEPS
            ):
                return name
        return None
    if travel.norm() > _MOST_DRIFT or max(growth, 1 / growth) < _LEAST_GROWTH:
        return None
    steps = track.area.diff()
    steady = ((steps > 0) if growth > 1 else (steps < 0)).float().mean()
    if steady < _LEAST_STEADY_STEPS:
        return None
    return "grows" if growth > 1 else "shrinks"


def _shape(track: _Track) -> str | None:
    """The shape whose ideal outline overlaps the object best over all frames, if it leads clearly."""
    overlaps = {}
    for name in SHAPES:
        half_width = (track.area / _AREA[name]).sqrt()
        middle = track.centroid.clone()
        middle[:, 1] -= _CENTROID_DROP[name] * half_width
        ideal = coverage([name], middle[None], half_width[None])[0]
        common, either = torch.minimum(ideal, track.opacity), torch.maximum(ideal, track.opacity)
        overlaps[name] = float(common.sum() / either.sum())
    first, second = sorted(overlaps, key=overlaps.__getitem__, reverse=True)[:2]
    if overlaps[first] < _LEAST_OVERLAP or overlaps[first] - overlaps[second] < _LEAST_OVERLAP_LEAD:
        return None
    return first


def can_read(clip: torch.Tensor) -> bool:
    """Whether a clip is one of the demos' world: uint8 [F, SIZE, SIZE, 3], two frames or more."""
    return clip.dtype == torch.uint8 and clip.dim() == 4 and clip.shape[1:] == (SIZE, SIZE, 3) and len(clip) > 1


def read(clip: torch.Tensor) -> Reading:
    """Read one clip, uint8 [F, SIZE, SIZE, 3]."""
    if not can_read(clip):
        raise ValueError(f"expected uint8 [frames >= 2, {SIZE}, {SIZE}, 3], got {clip.dtype} {list(clip.shape)}")
    frames = clip.cpu().float()
    middle = frames.flatten(0, 2).median(dim=0).values
    background = _nearest(middle, BACKGROUNDS, _BACKGROUND_TOLERANCE, darkest=0.85)
    found = _find_object(frames, middle)
    if found is None:
        return Reading(shape=None, colour=None, background=background, motion=None)
    colour, track = found
    return Reading(
        shape=_shape(track),
        colour=_nearest(colour, COLOURS, _COLOUR_TOLERANCE, darkest=0.75),
        background=background,
        motion=_motion(track),
    )


def scores(clips: torch.Tensor | Sequence[torch.Tensor], prompts: Sequence[str]) -> dict[str, float]:
    """The share of clips, 0..1, in which each attribute reads back as its prompt says.

    Args:
        clips: uint8 [N, F, SIZE, SIZE, 3], or N clips of that shape.
        prompts: N captions in the words of :class:`~s2q.demo.scenes.Scene`.

    Returns:
        ``background``, ``colour``, ``motion`` and ``shape``; unread attributes count as wrong.
    """
    if len(clips) != len(prompts) or not prompts:
        raise ValueError(f"need as many clips as prompts and at least one, got {len(clips)} and {len(prompts)}")
    matches = [read(clip).matches(Scene.parse(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return {name: sum(match[name] for match in matches) / len(matches) for name in matches[0]}
