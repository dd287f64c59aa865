"""What the studies of one block share: their options, and what they write."""

import argparse
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from s2q.runtime.native.library import instruction_set
from s2q.storage import write_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """How often, on how many threads, and where the results go."""
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="write the JSON here")


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The rows with the command and the machine, if they are to be written."""
    made = {
        "command": "python " + shlex.join(sys.argv),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "device": platform.machine(),
        "instruction_set": instruction_set(),
        "rows": rows,
    }
    if arguments.results:
        write_json(arguments.results, made)
