"""The error of one step: what a quantized transformer predicts where full precision stands.

A finished clip differs by what all its steps did, and errors add up or cancel along them: of two roundings whose layers lose
as much, one may make the nearer clip. One step, called as the full-precision pipeline calls it, is steadier.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.blocks import to_device
from s2q.models.pipelines import OpenPipeline

PROMPTS = 16
"""How many of a comparison's prompts are looked at."""
EVERY = 4
"""Of this many steps one is looked at, another one of each prompt."""


@torch.no_grad()
def predictions(
    opened: OpenPipeline, candidate: nn.Module, store: TrajectoryStore
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of the prompt, full precision's prediction, the candidate's) of each call looked at, float32."""
    device = opened.transformer.device
    for prompt in range(store.prompts):
        for step in range(prompt % EVERY, len(store.timesteps(prompt)), EVERY):
            for call in range(store.calls(prompt)):
                arguments = to_device(store.arguments(prompt, step, call=call), device)
                expected, got = (model(**arguments)[0].float() for model in (opened.transformer, candidate))
                yield prompt, expected, got


def step_errors(opened: OpenPipeline, candidate: nn.Module, store: TrajectoryStore) -> list[float]:
    """‖e − ê‖² / ‖e‖² over the calls of each prompt that are looked at."""
    lost, power = torch.zeros(store.prompts).double(), torch.zeros(store.prompts).double()
    for prompt, expected, got in predictions(opened, candidate, store):
        lost[prompt] += (expected - got).double().square().sum().cpu()
        power[prompt] += expected.double().square().sum().cpu()
    return (lost / power).tolist()
