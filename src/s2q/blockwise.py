"""Quantize block after block; what flows between them is made again from the float model when a run is resumed."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from s2q.calibration.selection import Sample
from s2q.calibration.trajectory import TrajectoryStore
from s2q.hidden import HiddenStates, Samples
from s2q.models.blocks import joined_tokens, record_calls, replay, to_device
from s2q.models.family import Family
from s2q.models.geometry import latent_size, token_grid
from s2q.models.pipelines import OpenPipeline
from s2q.progress import Progress, Stage
from s2q.quantization.block import calibrate_block, packed_block
from s2q.quantization.learn import batch_count
from s2q.quantization.objective import BlockSample
from s2q.quantization.schemes import groups_for
from s2q.quantization.tokens import weights_of_all
from s2q.ranks import Ranks
from s2q.recipe import Recipe
from s2q.reuse import Earlier
from s2q.storage import derived_seed, read_metadata
from s2q.workspace import Workspace


class SampleCall(NamedTuple):
    """One of the transformer's calls in a calibration sample."""

    sample: Sample
    call: int
    """Which of the step's."""


@dataclass(frozen=True)
class CalibrationSet:
    """What blocks are calibrated on."""

    store: TrajectoryStore | None = None
    """None for recipes that need no samples."""
    samples: tuple[Sample, ...] = ()
    weights: tuple[tuple[Tensor, ...], ...] = ()
    """λ by call and block, [B, S] each; empty if the recipe does not weight tokens."""

    @cached_property
    def calls(self) -> tuple[SampleCall, ...]:
        """All calls of all samples: one of each, but where a pipeline perturbs its transformer for more guidance."""
        return tuple(
            SampleCall(sample, call) for sample in self.samples for call in range(self.store.calls(sample.prompt))
        )

    def arguments(self, index: int) -> dict[str, Any]:
        """Arguments of call number `index`, on the CPU."""
        (prompt, step), call = self.calls[index]
        return self.store.arguments(prompt, step, call=call)

    def grid(self, family: Family, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """Video tokens along frames, height and width; none without samples."""
        return token_grid(config, *latent_size(family, self.arguments(0))) if self.samples else (0, 0, 0)


class Blockwise:
    """The walk through the blocks.

    Args:
        ranks: each calibrates its own blocks, which do not depend on one another unless errors are propagated: then
            the first rank calibrates all.
        earlier: whose transforms and clips are the start; None starts as the recipe says.
    """

    def __init__(
        self,
        opened: OpenPipeline,
        recipe: Recipe,
        given: CalibrationSet,
        seed: int,
        workspace: Workspace,
        ranks: Ranks,
        earlier: Earlier | None = None,
    ):
        self.opened, self.recipe, self.given, self.seed, self.workspace = opened, recipe, given, seed, workspace
        self.ranks, self.family, self.earlier = ranks, opened.family, earlier
        self.device = opened.transformer.device
        self.grid = given.grid(self.family, opened.transformer.config)
        self.guidance_scale = opened.guidance_scale
        self.propagates = recipe.optim.propagate_error and bool(given.samples)
        self.hidden = None if opened.stream is None else workspace.folder / f"hidden-{ranks.rank}"
        # What enters a block, what leaves it, and what enters it from quantized blocks where errors propagate.
        self.entering, self.leaving, self.quantized = (
            HiddenStates(self.hidden and self.hidden / name) for name in ("entering", "leaving", "quantized")
        )
        self.sides: list[list[dict[str, Any]]] = []
        # Block → what enters it in float, where the model does something between it and the block before.
        self.restarts: dict[int, HiddenStates] = {}

    def run(self, progress: Progress) -> None:
        """Calibrate all blocks of this rank that are not done yet."""
        blocks = self.family.blocks(self.opened.transformer)
        steps = 0
        if self.recipe.trains:
            kinds = [call for _, call in self.given.calls]
            steps = self.recipe.optim.epochs * batch_count(kinds, self.recipe.optim.batch_size)
        try:
            with progress.stage("calibration", len(blocks) * (steps + 1)) as stage:
                self._record()
                for index, (name, block) in enumerate(blocks):
                    with self.opened.held(block):
                        self._pass_on(block, index)
                        if self._is_mine(index) and read_metadata(self.workspace.block_path(index)) is None:
                            self._calibrate(block, index, name, stage)
                            stage.advance(note=name)
                        else:
                            stage.advance(steps + 1, note=name)
                        if self.propagates and self.ranks.first:
                            self._pass_on_quantized(block, index)
                    self.entering, self.leaving = self.leaving, self.entering
        finally:
            if self.hidden is not None:
                shutil.rmtree(self.hidden, ignore_errors=True)

    def _is_mine(self, index: int) -> bool:
        return self.ranks.first if self.propagates else self.ranks.takes(index)

    def _record(self) -> None:
        for k in range(len(self.given.calls)):
            arguments = to_device(self.given.arguments(k), self.device)
            recorded = record_calls(self.opened.transformer, self.family, arguments)
            self.entering[k] = recorded.first
            self.sides.append(recorded.sides)
            for index, states in recorded.restarts.items():
                if index not in self.restarts:
                    folder = self.hidden and self.hidden / f"block-{index}"
                    self.restarts[index] = HiddenStates(folder)
                self.restarts[index][k] = states
            if self.propagates:
                self.quantized[k] = self.entering[k]

    def _pass_on(self, block: nn.Module, index: int) -> None:
        restart = self.restarts.pop(index, None)
        for k, sides in enumerate(self.sides):
            if restart is not None and k in restart:
                self.entering[k] = restart[k]
                if self.propagates:  # what the model does in between is float, and so is what comes out of it
                    self.quantized[k] = restart[k]
            self.leaving[k] = replay(block, self.family, to_device(self.entering[k], self.device), sides[index])

    def _pass_on_quantized(self, block: nn.Module, index: int) -> None:
        packed = packed_block(block, self.family, self.recipe, self.workspace.read_block(index))
        for k, sides in enumerate(self.sides):
            self.quantized[k] = replay(packed, self.family, to_device(self.quantized[k], self.device), sides[index])

    def _calibrate(self, block: nn.Module, index: int, name: str, stage: Stage) -> None:
        groups = groups_for(self.recipe, self.family, block)
        samples = Samples(len(self.sides), lambda k: self._sample(k, index))
        seed = derived_seed(self.seed, "block", index)
        linears = [linear for group in groups for linear in group]
        start = None if self.earlier is None else self.earlier.block(name, linears)
        calibrated = calibrate_block(block, self.family, self.recipe, groups, samples, seed, stage.advance, start)
        self.workspace.write_block(index, name, groups, calibrated)

    def _sample(self, k: int, index: int) -> BlockSample:
        entering = self.quantized if self.propagates else self.entering
        (prompt, step), call = self.given.calls[k]
        target = joined_tokens(self.family, to_device(self.leaving[k], self.device))
        weights = None
        if self.given.weights:
            most = self.recipe.objective.lambda_max
            weights = weights_of_all(self.given.weights[k][index].to(self.device), target.shape[1], most)
        return BlockSample(
            to_device(entering[k], self.device),
            self.sides[k][index],
            target,
            weights,
            self.given.store.progress(prompt, step),
            self.grid[0],
            # Rows that hold frames or places beside branches (Latte) do not alternate: there are no pairs to combine.
            self.guidance_scale if len(target) == 2 and call == 0 else None,
            call,
            math.prod(self.grid),
        )
