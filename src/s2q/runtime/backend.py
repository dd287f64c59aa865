"""What a backend of the quantized linear is: two steps, and for each the reason why it would not do it.

A backend quantizes an input and multiplies it with a packed weight. It may hold the codes between the two in an order of
its own, and is then the one to multiply them, or to bring them back into the natural order for another. `s2q.runtime.dispatch`
asks the backends in turn.
"""

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from s2q.numerics.packing import unpack
from s2q.runtime.reference import ActFormat, InputTransform, LowRank, QuantizedInput


class _Asked(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    """of the input and the output"""
    rows: int
    columns: int
    outputs: int
    acts: ActFormat
    weight_bits: int
    symmetric_weights: bool = True
    weight_groups: int = 1
    kronecker: tuple[int, int] | None = None
    """n1, n2 of the transform"""
    input_range: bool = False
    low_rank: int = 0
    low_rank_on_codes: bool = False
    hadamard: int = 0
    """length of the blocks of the transform"""
    gelu_tanh: bool = False
    """`reference.gelu_tanh` of the output, before it is narrowed"""


class Problem(_Asked):
    """All that a backend may need to know in order to accept or decline; M rows (tokens), K columns, N outputs."""

    @cached_property
    def groups(self) -> int:
        """Groups of channels that the product is made of."""
        return max(self.acts.groups, self.weight_groups)

    @cached_property
    def notes(self) -> dict[str, Any]:
        """Backend → what it worked out for this problem: `s2q.runtime.dispatch` hands out the same one each time."""
        return {}


class PackedWeight(NamedTuple):
    """A weight as it is stored."""

    packed: Tensor
    """int32 [N, words]"""
    scale: Tensor
    """float32 [N, G]"""
    zero_point: Tensor | None
    """int32 [⌈N·b/32⌉, G], packed along N; None is symmetric"""
    bits: int

    @property
    def zero(self) -> Tensor | None:
        """Zero points as whole numbers, float32 [N, G]."""
        if self.zero_point is None:
            return None
        return unpack(self.zero_point.mT, self.bits, self.packed.shape[0]).mT.float()


class Backend(Protocol):
    """One way of computing the quantized linear, exact as `s2q.runtime.reference` defines it for the same x̂."""

    name: str
    """As S2Q_BACKEND and `QuantizedInput.backend` call it."""

    def missing(self) -> str | None:
        """None if it can work on this machine at all, else why not."""

    def about(self) -> str:
        """A few words on what it uses here."""

    def why_not_quantize(self, problem: Problem) -> str | None:
        """None if `quantize_input` takes this problem, else why not."""

    def quantize_input(self, x: Tensor, transform: InputTransform, problem: Problem) -> QuantizedInput:
        """Transform and quantize x [M, K]; x̂ is kept where a low-rank branch wants it.

        What comes back may be of the backend's own kind, if its `backend` is then the backend's name.
        """

    def why_not_multiply(self, problem: Problem) -> str | None:
        """None if `multiply` takes this problem, else why not."""

    def multiply(
        self,
        inputs: QuantizedInput,
        weight: PackedWeight,
        bias: Tensor | None,
        low_rank: LowRank | None,
        problem: Problem,
    ) -> Tensor:
        """[M, N] from an input in natural order or in the backend's own."""

    def natural(self, inputs: QuantizedInput, problem: Problem) -> QuantizedInput:
        """Its own input with the codes in natural order, zero points in them."""
