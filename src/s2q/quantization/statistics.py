"""What calibration must know of a linear's input before it starts: ranges, and some tokens to try things on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s2q.models.blocks import replay
from s2q.models.family import Family
from s2q.quantization.objective import BlockSample

Group = tuple[str, ...]
# Tokens of each shared input that are kept over all samples, evenly spread.
KEPT_TOKENS = 2048


@torch.no_grad()
def watch_inputs(
    block: nn.Module,
    family: Family,
    groups: list[Group],
    samples: Sequence[BlockSample],
    receive: Callable[[Group, nn.Module, Tensor, int], None],
) -> None:
    """Run all samples through `block`; hand over (group, its first linear, the input, the sample's index)."""
    index = 0
    handles = [
        block.get_submodule(group[0]).register_forward_pre_hook(
            lambda module, args, group=group: receive(group, module, args[0], index)
        )
        for group in groups
    ]
    try:
        for index, sample in enumerate(samples):  # noqa: B007 - the hooks read it
            replay(block, family, sample.states, sample.sides)
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class InputStatistics:
    """Of one shared input over all samples."""

    seen_in: list[int] = field(default_factory=list)
    """The samples, by number: a perturbed call leaves some linears out."""
    maxima: list[Tensor] = field(default_factory=list)
    """Largest magnitude of each channel, float32 [K], one for each of them."""
    tokens: list[Tensor] = field(default_factory=list)
    """Evenly spread tokens, float32 [m, K], one tensor a sample."""

    def rows(self) -> Tensor:
        """The kept tokens, [M, K]."""
        return torch.cat(self.tokens)


def input_statistics(
    block: nn.Module, family: Family, groups: list[Group], samples: Sequence[BlockSample]
) -> dict[Group, InputStatistics]:
    """Statistics of every shared input of the float block."""
    found = {group: InputStatistics() for group in groups}
    share = max(1, KEPT_TOKENS // max(1, len(samples)))

    def receive(group: Group, linear: nn.Module, x: Tensor, index: int) -> None:
        rows = x.detach().flatten(0, -2).float()
        found[group].seen_in.append(index)
        found[group].maxima.append(rows.abs().amax(0))
        found[group].tokens.append(rows[:: max(1, len(rows) // share)].clone())

    if groups:
        watch_inputs(block, family, groups, samples, receive)
    return found
