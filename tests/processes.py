"""The command line in processes of their own, which can be killed at an exact moment.

A fork server imports the libraries once, so that a process costs a fraction of a second instead of ten.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["s2q.cli", "s2q.run", "s2q.assessment", "s2q.planning", "diffusers.pipelines.cogvideo.pipeline_cogvideox"]
)
TIMEOUT = 120


class Finished(NamedTuple):
    """How a process ended."""

    status: int
    """Exit status; −9 after SIGKILL."""
    out: str
    err: str


class Strike(NamedTuple):
    """Send the process a signal when it is about to put a file or folder in its place, or just has."""

    target: str
    """End of the path."""
    number: int = signal.SIGKILL
    after: bool = False


def run_s2q(arguments: Sequence[str | Path], logs: Path, strike: Strike | None = None) -> Finished:
    """`s2q ARGUMENTS`; what it prints goes through files in the folder `logs`."""
    logs.mkdir(parents=True, exist_ok=True)
    paths = logs / "stdout", logs / "stderr"
    process = CONTEXT.Process(target=_main, args=([str(a) for a in arguments], [str(p) for p in paths], strike))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"s2q {' '.join(map(str, arguments))} ran for more than {TIMEOUT} s")
    return Finished(process.exitcode, *(path.read_text(encoding="utf-8") for path in paths))


def _main(arguments: list[str], outputs: list[str], strike: Strike | None) -> None:
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
    sys.argv = ["s2q", *arguments]
    if strike is not None:
        _prepare(strike)
    from s2q.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _prepare(strike: Strike) -> None:
    move = os.replace

    def replace(source, target):
        struck = str(target).endswith(strike.target)
        if struck and not strike.after:
            os.kill(os.getpid(), strike.number)
        move(source, target)
        if struck and strike.after:
            os.kill(os.getpid(), strike.number)

    os.replace = replace
