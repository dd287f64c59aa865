"""Who computes a quantized linear: the backends are asked in order, and the first that takes a problem does it.

    native   C on the CPU, `s2q.runtime.native.backend`
    triton   kernels on NVIDIA GPUs, `s2q.runtime.gpu.backend`
    torch    `torch._int_mm` on every device, `s2q.runtime.integer`; takes everything

The one that multiplies also quantizes if it takes that, so that the codes can stand in its own order; else the first that does,
in the natural order. The variable S2Q_BACKEND names the backend to ask before all others, and demands that it can work here.
A backend of one's own is one more entry of `BACKENDS`, before `torch`; see `s2q.runtime.backend.Backend`.
"""

import os
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from s2q.runtime import integer
from s2q.runtime.backend import Backend, PackedWeight, Problem
from s2q.runtime.gpu import backend as gpu
from s2q.runtime.gpu.backend import TritonBackend
from s2q.runtime.integer import TorchBackend
from s2q.runtime.native.backend import NativeBackend
from s2q.runtime.reference import InputTransform, LowRank, QuantizedInput

BACKENDS: tuple[Backend, ...] = (NativeBackend(), TritonBackend(), TorchBackend())


class Choice(NamedTuple):
    """Who does the two steps of a problem, and why those before them in the order do not."""

    problem: Problem
    quantize: Backend
    multiply: Backend
    declined: tuple[str, ...]
    """sentences, a backend and step each"""


def choose(problem: Problem) -> Choice:
    """The backends for a problem.

    Raises:
        ValueError: S2Q_BACKEND names no backend.
        RuntimeError: it names one that cannot work on this machine.
    """
    return _choose(problem, os.environ.get("S2Q_BACKEND", ""))


@lru_cache(maxsize=4096)
def _choose(problem: Problem, wanted: str) -> Choice:
    declined: list[str] = []
    order = _order(wanted)

    def first(step: str, candidates: tuple[Backend, ...]) -> Backend:
        for backend in candidates:
            reason = getattr(backend, f"why_not_{step}")(problem)
            if reason is None:
                return backend
            declined.append(f"{backend.name} does not {step}: {reason}")
        raise AssertionError("the last backend takes everything")

    multiply = first("multiply", order)
    return Choice(problem, first("quantize", (multiply, *order)), multiply, tuple(declined))


def _order(wanted: str) -> tuple[Backend, ...]:
    if not wanted:
        return BACKENDS
    names = [backend.name for backend in BACKENDS]
    if wanted not in names:
        raise ValueError(f"S2Q_BACKEND is {wanted!r}: allowed are {' and '.join(names)}, or nothing")
    own = BACKENDS[names.index(wanted)]
    missing = own.missing()
    if missing is not None:
        raise RuntimeError(f"S2Q_BACKEND is {wanted}, which cannot work here: {missing}")
    # The last one takes what the demanded one declines.
    return (own, BACKENDS[-1])


def quantize_input(choice: Choice, x: Tensor, transform: InputTransform) -> QuantizedInput:
    """Transform and quantize x [M, K], as `Backend.quantize_input`."""
    return choice.quantize.quantize_input(x, transform, choice.problem)


def multiply(
    choice: Choice, inputs: QuantizedInput, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None
) -> Tensor:
    """Quantized input times packed weight, [M, N] of the problem's dtype, whoever quantized."""
    if inputs.backend is not None and inputs.backend != choice.multiply.name:
        maker = next(maker for maker in BACKENDS if maker.name == inputs.backend)
        inputs = maker.natural(inputs, choice.problem)
    return choice.multiply.multiply(inputs, weight, bias, low_rank, choice.problem)


def weight_only(x: Tensor, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None) -> Tensor:
    """Float activations times packed weights, x float32 [M, K] → float32 [M, N]: by a kernel on a GPU, else by torch."""
    wanted = os.environ.get("S2Q_BACKEND", "")
    on_gpu = wanted == TritonBackend.name or (not wanted and x.is_cuda)
    if on_gpu and gpu.why_not_weight_only(x, weight) is None:
        return gpu.weight_only(x, weight, bias, low_rank)
    return integer.weight_only(x, weight, bias, low_rank)
