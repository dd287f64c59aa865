"""Train what a simulated block can learn, against the float block's outputs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from s2q.memory import in_chunks
from s2q.models.blocks import replay
from s2q.models.family import Family
from s2q.numerics.rounding import penalty_exponent, rounding_penalty
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.objective import BlockSample, block_loss, collate, rows_of
from s2q.quantization.transforms import SharedTransform, make_matrices
from s2q.recipe import OptimSpec, Recipe


def linears_of(simulated: nn.Module) -> list[SimulatedLinear]:
    """All simulated linears of a block."""
    return [module for module in simulated.modules() if isinstance(module, SimulatedLinear)]


def transforms_of(simulated: nn.Module) -> list[SharedTransform]:
    """Their transforms, each once."""
    return list({id(linear.inputs): linear.inputs for linear in linears_of(simulated)}.values())


def _parameter_groups(simulated: nn.Module, optim: OptimSpec) -> list[dict]:
    linears, transforms = linears_of(simulated), transforms_of(simulated)
    matrices = [p for transform in transforms for p in transform.transform_parameters()]
    matrices += [p for linear in linears for p in (linear.low_rank_down, linear.low_rank_up) if p is not None]
    clips = [p for transform in transforms for p in transform.clip_parameters()]
    clips += [linear.clip_logit for linear in linears if linear.clip_logit is not None]
    roundings = [linear.round_logit for linear in linears if linear.round_logit is not None]
    rates = ((matrices, optim.lr), (clips, optim.clip_lr), (roundings, optim.rounding_lr))
    chosen = [([p for p in params if p.requires_grad], lr) for params, lr in rates]
    return [{"params": params, "lr": lr} for params, lr in chosen if params]


def batch_count(kinds: Sequence[int], size: int) -> int:
    """Batches in a pass over samples of these kinds: a batch holds one kind alone, at most `size` samples."""
    return len(_batches(range(len(kinds)), kinds, size))


def _batches(order: Sequence[int], kinds: Sequence[int], size: int) -> list[list[int]]:
    batches: list[list[int]] = []
    unfinished: dict[int, list[int]] = {}
    for index in order:
        batch = unfinished.get(kinds[index])
        if batch is None or len(batch) == size:
            batch = unfinished[kinds[index]] = []
            batches.append(batch)
        batch.append(index)
    return batches


def learn(
    simulated: nn.Module,
    family: Family,
    recipe: Recipe,
    samples: Sequence[BlockSample],
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """AdamW with a cosine schedule on the recipe's objective; the simulated block is changed in place.

    Args:
        seed: of the order of the samples.
        on_step: called after each optimisation step.
    """
    optim = recipe.optim
    gradients = Gradients(simulated, family, recipe)
    # No weight decay: it would pull scales, angles and clips to arbitrary places, not to simpler ones.
    optimizer = torch.optim.AdamW(_parameter_groups(simulated, optim), weight_decay=0.0, fused=True)
    # Samples may be made when they are asked for: of batches of one, nobody needs to know the kinds.
    kinds = [0] * len(samples) if optim.batch_size == 1 else [sample.call for sample in samples]
    steps = optim.epochs * batch_count(kinds, optim.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-3 * optim.lr)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for _ in range(optim.epochs):
        order = torch.randperm(len(samples), generator=generator).tolist()
        for indices in _batches(order, kinds, optim.batch_size):
            batch = collate([samples[index] for index in indices])
            gradients.find(batch, done / steps)
            optimizer.step()
            schedule.step()
            gradients.forget()
            done += 1
            on_step()


class Gradients:
    """Gradients of what a simulated block learns."""

    def __init__(self, simulated: nn.Module, family: Family, recipe: Recipe):
        self.simulated, self.family, self.recipe = simulated, family, recipe
        self.transforms = transforms_of(simulated)
        self.params = [p for module in (simulated, *self.transforms) for p in module.parameters() if p.requires_grad]
        self.logits = [linear.round_logit for linear in linears_of(simulated) if linear.round_logit is not None]

    def forget(self) -> None:
        """Drop what the transforms remember."""
        for transform in self.transforms:
            transform.forget()

    def find(self, batch: BlockSample, progress: float) -> None:
        """Set those of the loss of `batch`: of all rows at once, or fewer at a time if they are too many for the memory."""
        rows = len(batch.target)
        # The guided error is of pairs, which stay together.
        unit = 2 if self.recipe.objective.guided and batch.guidance is not None and rows % 2 == 0 else 1
        found: list[tuple[Tensor | None, ...]] = []

        def differentiate(units: slice) -> None:
            part = batch
            if units.stop - units.start < rows // unit:
                part = rows_of(batch, slice(units.start * unit, units.stop * unit))
            self.forget()
            make_matrices(self.transforms)
            states = replay(self.simulated, self.family, part.states, part.sides)
            loss = block_loss(self.family, states, part, self.recipe.objective, whole=batch)
            loss = loss + len(part.target) / rows * self._rounding_loss(progress)
            found.append(torch.autograd.grad(loss, self.params, allow_unused=True))

        in_chunks(rows // unit, rows // unit, differentiate)
        for parameter, *grads in zip(self.params, *found, strict=True):
            some = [grad for grad in grads if grad is not None]
            # Contiguous as the parameter: the fused optimizer reads memory in order, whatever the strides.
            parameter.grad = sum(some[1:], some[0]).contiguous() if some else None

    def _rounding_loss(self, progress: float) -> Tensor | float:
        """AdaRound's regulariser: the mean over weights, so that its share does not grow with the width."""
        exponent = penalty_exponent(progress)
        if exponent is None or not self.logits:
            return 0.0
        count = sum(logit.numel() for logit in self.logits)
        return (
            self.recipe.optim.rounding_penalty * sum(rounding_penalty(logit, exponent) for logit in self.logits) / count
        )
