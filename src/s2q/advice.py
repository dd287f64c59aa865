"""What to do where a plan asks for more memory than there is, or for more time than anybody has."""

from collections.abc import Callable, Mapping
from typing import Any

from s2q.messages import duration, size
from s2q.models.folder import PARTS
from s2q.planning import Plan

CARD_BYTES = 24 << 30
"""Memory of a common large card, 24 GB."""
TOO_LONG = 100 * 3600
"""Seconds of calibration that few will wait."""
CLIPS = ((81, 480, 832), (49, 480, 832), (33, 480, 832), (49, 256, 448), (17, 256, 448), (9, 256, 448))
"""Frames, height and width that are tried, the largest first: allowed by the patches and VAEs of all released families."""


def advise(
    made: Plan,
    beside: Mapping[str, int],
    free: int,
    device: str,
    again: Callable[[Mapping[str, Any]], Plan],
    *,
    trains: bool = False,
) -> list[str]:
    """Lines of advice, none where `made` fits in memory and time.

    Args:
        beside: model → bytes of what else the pipeline loads, see `companion_bytes`; text encoders leave first, and blocks
            of another transformer stay on disk as well.
        free: bytes that are free on `device`.
        again: the plan of the same with these arguments of a call in place of those that `made` was made with.
        trains: whether the recipe does, which takes most of the memory.
    """
    lines = []
    staying = {name: count for name, count in beside.items() if not name.startswith(("text_encoder", PARTS[0]))}
    room = min(free, CARD_BYTES) - sum(staying.values())
    have = f"the {size(free)} that are free on {device}" if free < CARD_BYTES else "a common large card has, 24 GiB"
    if made.streamed_memory_bytes > room:
        what = f"with {' and '.join(staying)}, " if staying else ""
        other = "; --recipe gptq, which trains nothing, takes far less" if trains else ""
        lines.append(f"Even with --stream this is, {what}more than {have}: {_smaller(room, made, again)}{other}")
    elif made.memory_bytes > room:
        lines.append(f"Without --stream this is more than {have}; with it, the default where memory is short, it fits")
    if (spent := sum(made.seconds.values())) > TOO_LONG:
        lines.append(
            f"{duration(spent)} on {device} is too long to wait: take a GPU, --recipe rtn (which records nothing), fewer "
            "--steps and --num-frames, a smaller --height and --width, or --set sampler.count=N; see docs/scale.md"
        )
    return lines


def _smaller(room: int, made: Plan, again: Callable[[Mapping[str, Any]], Plan]) -> str:
    for frames, height, width in CLIPS:
        other = again({"num_frames": frames, "height": height, "width": width})
        if other.tokens < made.tokens and other.streamed_memory_bytes <= room:
            return (
                f"calibrate on shorter or smaller clips than you will make, such as --num-frames {frames} --height {height} "
                f"--width {width}, {size(other.streamed_memory_bytes)} with --stream"
            )
    return "shorter clips do not help; take --recipe rtn, which loads the transformer alone, or another machine"
