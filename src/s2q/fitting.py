"""Whether calibration fits in the memory and on the disk that are free, told before it starts."""

from pathlib import Path

import psutil
import torch

from s2q.messages import size
from s2q.planning import Plan


class TooLargeError(ValueError):
    """A calibration that would run out of memory or disk."""


def free_memory(device: str) -> int:
    """Bytes that are free where the transformer will run."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return psutil.disk_usage(str(there)).free


def choose_stream(plan: Plan, stream: bool | None, memory: int, disk: int) -> bool | None:
    """`stream` as it was asked for; where it was left open and only streaming fits, True.

    Args:
        memory, disk: bytes that are free.

    Raises:
        TooLargeError: it does not fit, by the estimates of `plan`.
    """
    fits = {False: plan.memory_bytes <= memory, True: plan.streamed_memory_bytes <= memory}
    fits_disk = {False: plan.disk_bytes <= disk, True: plan.streamed_disk_bytes <= disk}
    ways = [False, True] if stream is None else [stream]
    good = [way for way in ways if fits[way] and fits_disk[way]]
    if good:
        # None goes on to be decided by the size of the weights.
        return stream if len(good) == len(ways) else good[0]
    needed = (
        f"about {size(plan.memory_bytes)} of memory ({size(plan.streamed_memory_bytes)} with --stream) and "
        f"{size(plan.disk_bytes)} of disk ({size(plan.streamed_disk_bytes)} with --stream)"
    )
    raise TooLargeError(
        f"calibration needs {needed}, by s2q plan; {size(memory)} of memory and {size(disk)} of disk are free. Use "
        f"{'--stream, ' if stream is False else ''}fewer --num-frames, a smaller --height and --width, --set "
        "sampler.count=N, or another machine; --force starts all the same"
    )
