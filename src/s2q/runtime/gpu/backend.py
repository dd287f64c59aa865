"""The operators of the backend "triton", and why it would not take them; codes stand in their natural order.

Triton itself is imported when a kernel is first needed, not before.
"""

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.reference import ActFormat, InputTransform, LowRank, QuantizedInput, low_rank_input

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)


@cache
def _missing() -> bool:
    return importlib.util.find_spec("triton") is None


@cache
def _interpreted() -> bool:
    """Whether Triton interprets the kernels, which it decides when it first sees them."""
    from s2q.runtime.gpu import tokens

    return type(tokens._round).__name__ == "InterpretedFunction"


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def why_not(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """None if the kernels can run there on tensors of these dtypes, else the reason why not."""
    if _missing():
        return "triton is not installed: CUDA builds of torch bring it, else `pip install --no-deps triton`"
    if device.type == "cpu" and not _interpreted():
        return "on the CPU it runs in Triton's interpreter alone: set TRITON_INTERPRET=1 before Python starts"
    if device.type not in ("cpu", "cuda") or torch.version.hip:
        return f"it runs on NVIDIA GPUs, not on {'AMD' if torch.version.hip else device.type}"
    if device.type == "cuda" and _capability(device.index) < LEAST_CAPABILITY:
        major, minor = _capability(device.index)
        return f"it wants a GPU of compute capability 8.0 or newer, this one has {major}.{minor}"
    wrong = [dtype for dtype in dtypes if dtype not in DTYPES]
    return f"it takes float32, bfloat16 and float16, not {wrong[0]}" if wrong else None


def why_not_quantize(x: Tensor, transform: InputTransform, acts: ActFormat) -> str | None:
    """None if `quantize_input` takes these tokens [M, K], else the reason why not."""
    kronecker = None if transform.left is None else (transform.left.shape[0], transform.right.shape[0])
    return why_not(x.device, x.dtype) or _why_not_tokens(*x.shape, kronecker, acts.groups)


def _why_not_tokens(rows: int, columns: int, kronecker: tuple[int, int] | None, groups: int) -> str | None:
    from s2q.runtime.gpu import tokens

    if not rows * columns:
        return "there are no tokens"
    if kronecker is not None and not tokens.fits(*kronecker):
        return f"a token of {kronecker[0]} × {kronecker[1]} values is too large for one program"
    size = columns // groups
    if size > tokens.LARGEST_TOKEN:
        return f"{size} values with one step are too many for one program: at most {tokens.LARGEST_TOKEN}"
    return None


def quantize_input(x: Tensor, transform: InputTransform, acts: ActFormat, keep_values: bool = False) -> QuantizedInput:
    """Transform and quantize the tokens `x` [M, K].

    Args:
        keep_values: a low-rank branch needs x̂.
    """
    from s2q.runtime.gpu import tokens

    return tokens.quantize_tokens(x.contiguous(), transform, acts, keep_values)


def why_not_multiply(inputs: QuantizedInput, weight: PackedWeight, dtype: torch.dtype) -> str | None:
    """None if `multiply` takes this input and weight, else the reason why not."""
    if inputs.backend is not None:
        return f"it takes codes in their natural order, these stand as {inputs.backend} has them"
    if not inputs.codes.numel():
        return "there are no tokens"
    return why_not(inputs.codes.device, dtype)


def multiply(
    inputs: QuantizedInput,
    weight: PackedWeight,
    bias: Tensor | None,
    low_rank: LowRank | None,
    dtype: torch.dtype,
    gelu: bool = False,
) -> Tensor:
    """Quantized input times packed weight: codes int8 [M, K] → [M, N] of `dtype`, maybe with GELU."""
    from s2q.runtime.gpu.product import multiply_packed

    branch = None if low_rank is None else (low_rank_input(inputs, low_rank), low_rank.up)
    scale, zero = inputs.scale.contiguous(), None if inputs.zero is None else inputs.zero.contiguous()
    return multiply_packed(inputs.codes.contiguous(), scale, zero, *weight, branch, bias, dtype, gelu)


def why_not_weight_only(x: Tensor, weight: PackedWeight) -> str | None:
    """None if `weight_only` takes these values and weight, else the reason why not."""
    return why_not(x.device, x.dtype) or (None if x.numel() else "there are no tokens")


def weight_only(x: Tensor, weight: PackedWeight, bias: Tensor | None, low_rank: LowRank | None) -> Tensor:
    """Float activations times packed weights: x float32 [M, K] → float32 [M, N]."""
    from s2q.runtime.gpu.product import multiply_packed

    branch = None if low_rank is None else (x @ low_rank.down.to(x.dtype).mT, low_rank.up)
    return multiply_packed(x.contiguous(), None, None, *weight, branch, bias, x.dtype)


class TritonBackend:
    """The operators above, as `s2q.runtime.dispatch` asks for them."""

    name = "triton"

    def missing(self) -> str | None:
        """None if there is a GPU that it takes, or Triton interprets."""
        return why_not(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def about(self) -> str:
        """Where its kernels run."""
        return "Triton" if torch.cuda.is_available() else "Triton's interpreter"

    def _why_not(self, problem: Problem) -> str | None:
        if problem.device.type == "cpu" and os.environ.get("S2Q_BACKEND") != self.name:
            return "on the CPU it is interpreted, for tests that demand it"
        return why_not(problem.device, problem.dtype)

    def why_not_quantize(self, problem: Problem) -> str | None:
        """None if `quantize_input` takes this problem, else why not."""
        sizes = (problem.rows, problem.columns, problem.kronecker, problem.acts.groups)
        return self._why_not(problem) or _why_not_tokens(*sizes)

    def quantize_input(self, x: Tensor, transform: InputTransform, problem: Problem) -> QuantizedInput:
        """Transform and quantize x [M, K]."""
        keep = problem.low_rank > 0 and not problem.low_rank_on_codes
        return quantize_input(x, transform, problem.acts, keep)

    def why_not_multiply(self, problem: Problem) -> str | None:
        """None if `multiply` takes this problem, else why not."""
        return self._why_not(problem) or (None if problem.rows else "there are no tokens")

    def multiply(
        self,
        inputs: QuantizedInput,
        weight: PackedWeight,
        bias: Tensor | None,
        low_rank: LowRank | None,
        problem: Problem,
    ) -> Tensor:
        """[M, N] from an input in natural order."""
        return multiply(inputs, weight, bias, low_rank, problem.dtype, problem.gelu_tanh)

    def natural(self, inputs: QuantizedInput, problem: Problem) -> QuantizedInput:
        """As it is."""
        return inputs
