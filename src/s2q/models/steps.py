"""Learn when a denoising step of a pipeline ends, and what it leaves."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

CALLBACK = "callback_on_step_end"


@contextmanager
def steps_told(pipe: DiffusionPipeline, on_step: Callable[[Tensor], None]) -> Iterator[dict[str, Any]]:
    """Inside, calls of `pipe` with the arguments that are yielded give `on_step` the latents after each step.

    A pipeline without diffusers' callback (HunyuanVideo 1.5) tells through its scheduler, whose step is the last thing that
    happens in one of the pipeline's.
    """
    if CALLBACK in inspect.signature(pipe.__call__).parameters:

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            on_step(tensors["latents"])
            return tensors

        yield {CALLBACK: callback}
        return
    scheduler, own = pipe.scheduler, pipe.scheduler.step

    def step(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        on_step(made[0])
        return made

    scheduler.step = step
    try:
        yield {}
    finally:
        del scheduler.step
