"""The one training loop: seeded, checkpointed, and resumable to the same bits.

All randomness of a step comes from a generator seeded by the step's number, so a checkpoint needs no random state: the
weights, their running average, the optimizer and the step number are all there is to resume from.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

LossFunction = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How long and how fast one model is trained. The learning rate depends on the step and this plan alone."""

    name: str
    steps: int
    peak_rate: float
    warmup: float = 0.05
    average_decay: float = 0.998
    gradient_norm: float = 1.0
    seed: int = 0
    seconds_between_saves: float = 60.0
    seconds_between_reports: float = 20.0

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up over the first share of the steps, then half a cosine to zero."""
        progress = step / self.steps
        if progress < self.warmup:
            return self.peak_rate * (step + 1) / (self.warmup * self.steps + 1)
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


def save_atomically(state: object, path: Path) -> None:
    """Write ``state`` so that a reader, or a run killed half way, never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step: a CPU generator that depends on nothing but the two numbers."""
    return torch.Generator().manual_seed((seed << 32) + step)


def fit(
    model: nn.Module, loss: LossFunction, plan: Plan, checkpoint: Path, *, stop_after: int | None = None
) -> nn.Module:
    """Train ``model`` by AdamW, resuming from ``checkpoint`` if it exists, and leave the averaged weights in it.

    Args:
        model: trained in place; its parameters are float32.
        loss: maps a step's generator to a scalar loss over a batch drawn from it.
        plan: how long and how fast.
        checkpoint: file to resume from and to save to, at intervals and at the end.
        stop_after: stop (saved) once this many steps are done, as an interruption would.

    Returns:
        ``model`` with the running average of its weights loaded, in evaluation mode.
    """
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=plan.peak_rate, betas=(0.9, 0.99), weight_decay=0.01)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=parameters[0].device, weights_only=True)
        model.load_state_dict(state["model"])
        average, done = state["average"], state["done"]
        optimizer.load_state_dict(state["optimizer"])

    def save() -> None:
        state = {"model": model.state_dict(), "average": average, "optimizer": optimizer.state_dict(), "done": done}
        save_atomically(state, checkpoint)

    last = plan.steps if stop_after is None else min(plan.steps, stop_after)
    first, began = done, time.monotonic()
    saved = reported = began
    recent: list[torch.Tensor] = []
    model.train()
    while done < last:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(done)
        value = loss(step_generator(plan.seed, done))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, plan.gradient_norm)
        optimizer.step()
        decay = min(plan.average_decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        done += 1
        recent.append(value.detach())

        now = time.monotonic()
        if now - reported > plan.seconds_between_reports:
            left = (now - began) / (done - first) * (plan.steps - done)
            mean = torch.stack(recent).mean().item()
            print(f"{plan.name}: step {done}/{plan.steps}, loss {mean:.4f}, {left / 60:.1f} min left", flush=True)
            recent, reported = [], now
        if now - saved > plan.seconds_between_saves:
            save()
            saved = now
    if done > first:
        save()
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    return model.eval()
