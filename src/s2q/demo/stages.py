"""What the trainings of all families share: how a stage's steps are planned, and the file that keeps the plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from s2q.demo.loop import LossFunction, step_generator


def seconds_a_step(model: nn.Module, loss: LossFunction, steps: int = 6) -> float:
    """Time of a training step, without its optimizer, on a model that is thrown away."""
    times = []
    for step in range(steps):
        began = time.monotonic()
        loss(step_generator(0, step)).backward()
        times.append(time.monotonic() - began)
    return sorted(times)[steps // 2]


def planned_steps(work: Path, plan: Callable[[], dict[str, int]]) -> dict[str, int]:
    """The steps of a run begun earlier, else those of ``plan``, kept beside the checkpoints: rates depend on them."""
    file = work / "steps.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan(), indent=2) + "\n")
    return json.loads(file.read_text())
