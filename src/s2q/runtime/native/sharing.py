"""Share work out over torch's number of threads: its own, where they are OpenMP's, else those of a pool.

Threads of OpenMP wait for their next work by spinning, and take the processors from a pool beside them: so what matters most is
done by the same team (team.h).
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

# Operations of a pass over the values below which a second thread costs more than it saves.
WORTH_A_THREAD = 1 << 18


class _Team(ctypes.Structure):
    """`team` of team.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("parallel", "index", "size"))


@cache
def team() -> Any:
    """The threads of torch's own operations, to pass to native code; None if they are not OpenMP's."""
    if not torch.backends.openmp.is_available():
        return None
    try:
        runtime = ctypes.CDLL(None)  # what torch has loaded for all
        functions = (runtime.GOMP_parallel, runtime.omp_get_thread_num, runtime.omp_get_num_threads)
    except (AttributeError, OSError, TypeError):
        return None
    return ctypes.byref(_Team(*(ctypes.cast(function, ctypes.c_void_p) for function in functions)))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="s2q")


def worth(work: int) -> int:
    """How many threads are worth it for so many operations."""
    return 1 if work < 2 * WORTH_A_THREAD else min(torch.get_num_threads(), work // WORTH_A_THREAD)


def share(part: Callable[[int, int], int | None], count: int, work: int) -> None:
    """Call `part` on ranges that together are `count`, on as many threads as `work` is worth, see `share_out`."""
    share_out(part, count, worth(work))


def give_out(
    part: Callable[[int, int], int | None], by_team: Callable[[Any, int, int], int], count: int, threads: int
) -> None:
    """`share_out`, or the same by `team`, which native code has a function for.

    Args:
        by_team: takes the team, its size, and the number of ranges; returns other than 0 if one of them failed.
    """
    parts, own = min(count, threads), team()
    if parts > 1 and own:
        enough(by_team(own, torch.get_num_threads(), parts))
    else:
        share_out(part, count, parts)


def share_out(part: Callable[[int, int], int | None], count: int, threads: int) -> None:
    """Call `part` on ranges that together are `count`, one a thread.

    Raises:
        MemoryError: a `part` returned other than 0 or None.
    """
    threads = min(threads, count)
    if threads <= 1:
        failed = count > 0 and part(0, count)
    else:
        bounds = [count * index // threads for index in range(threads + 1)]
        failed = any(list(_pool().map(part, bounds[:-1], bounds[1:])))
    enough(failed)


def enough(failed: int) -> None:
    """Raise MemoryError if something `failed`."""
    if failed:
        raise MemoryError("no memory for the scratch of the native code")
