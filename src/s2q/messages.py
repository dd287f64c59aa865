"""What the command line says: tables, sizes, durations, and which exceptions are the user's to mend."""

from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

console = Console()
errors = Console(stderr=True)

USER_ERRORS = (ValueError, OSError, SafetensorError)
"""ValueError covers s2q's own errors (pipeline, checkpoint, workspace, output); the rest comes from files."""


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.3f} GiB"


def duration(seconds: float) -> str:
    """A number of seconds, for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(title: str, rows: dict[str, str]) -> None:
    """Print name and value by line."""
    grid = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        grid.add_row(name, value)
    console.print(grid)


def print_storage(storage: dict[str, Any], part: str = "transformer") -> None:
    """Print what `package.Storage` counted of a part of a pipeline."""
    ratio = storage["float_bytes"] / storage["quantized_bytes"]
    console.print(
        f"{part} {size(storage['float_bytes'])} → {size(storage['quantized_bytes'])} ({ratio:.2f}× smaller), "
        f"{storage['bits_per_block_weight']:.2f} bits a block weight",
        highlight=False,
    )
