"""Progress of long work: bars with the time left on a terminal, one plain line at a time elsewhere, nothing in a library."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from s2q.ranks import speaks


class Stage(Protocol):
    """One stage under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more items are done."""


class Progress(Protocol):
    """Whoever wants to know how far the work is."""

    def stage(self, name: str, total: int):
        """A context manager that gives a `Stage` of `total` items."""


class _Silent:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass


class NoProgress:
    """Says nothing: the default in a program."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """See `Progress`."""
        yield _Silent()


class LineProgress:
    """One parseable line now and then, for logs: `s2q calibration 3/6 elapsed=12s left=12s`."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = 5.0):
        self._stream, self._every = stream or sys.stderr, every_seconds

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """See `Progress`."""
        started = last = time.monotonic()
        done = 0
        stream, every = self._stream, self._every

        class _Lines:
            def advance(self, amount: int = 1, note: str = "") -> None:
                nonlocal done, last
                done += amount
                now = time.monotonic()
                if now - last >= every or done == total:
                    last = now
                    elapsed = now - started
                    left = elapsed / done * (total - done)
                    line = f"s2q {name} {done}/{total} elapsed={elapsed:.0f}s left={left:.0f}s {note}"
                    print(line.rstrip(), file=stream, flush=True)

        yield _Lines()


class BarProgress:
    """A bar a stage with the time left, for terminals."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """See `Progress`."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(name.replace("_", " "), total=total, note="")

            class _Bar:
                def advance(self, amount: int = 1, note: str = "") -> None:
                    bars.update(task, advance=amount, note=note)

            yield _Bar()


class CallableProgress:
    """Calls a function: `call(stage, done, total, note)` when a stage begins and after every item.

    Args:
        call: receives the stage's name, how many of its items are done and how many there are, and the name of the last.
    """

    def __init__(self, call: Callable[[str, int, int, str], None]):
        self._call = call

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """See `Progress`."""
        call, done = self._call, 0
        call(name, 0, total, "")

        class _Calls:
            def advance(self, amount: int = 1, note: str = "") -> None:
                nonlocal done
                done += amount
                call(name, done, total, note)

        yield _Calls()


def as_progress(progress: "Progress | Callable[[str, int, int, str], None] | None") -> Progress:
    """What a caller gave, as a `Progress`: itself, a function as `CallableProgress` calls it, or silence for None.

    Raises:
        TypeError: it is none of these.
    """
    if progress is None:
        return NoProgress()
    if callable(getattr(progress, "stage", None)):
        return progress
    if not callable(progress):
        raise TypeError(
            f"progress must have a method stage(name, total), or be a function of (stage, done, total, note); got {progress!r}"
        )
    return CallableProgress(progress)


def terminal_progress() -> Progress:
    """Bars if standard error is a terminal, else lines; nothing in the second and later of several processes."""
    if not speaks():
        return NoProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()
