"""A linear layer whose weight is packed and whose product is made of integers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from s2q.checkpoint import SchemeSpec, tensor_layout
from s2q.numerics.hadamard import hadamard_blocks
from s2q.numerics.kronecker import kronecker_apply
from s2q.numerics.quantizer import group_count
from s2q.runtime.backend import PackedWeight, Problem
from s2q.runtime.dispatch import choose, multiply, quantize_input
from s2q.runtime.integer import float_weight
from s2q.runtime.operator import WEIGHT_ONLY, quantized_linear
from s2q.runtime.reference import STORED, ActFormat, InputTransform, LowRank, QuantizedInput


class SharedInput:
    """Remembers the last quantized input for linears that receive the same tensor (q, k and v).

    The tensor is recognised by identity, and forgotten when every linear of the group has taken it. Each linear
    can still work alone, so offloading, device maps and adapters need to know nothing of this.
    """

    def __init__(self, members: int):
        self.members = members
        self._source: Tensor | None = None
        self._version = 0
        self._value: QuantizedInput | None = None
        self._taken = 0

    def get(self, x: Tensor, make: Callable[[], QuantizedInput]) -> QuantizedInput:
        """The quantized form of `x`, made by `make` unless the linear before received the very same tensor."""
        # Tensors of inference mode count no versions; nothing writes into a layer's input there.
        version = 0 if x.is_inference() else x._version
        if self._source is not x or self._version != version or self._value is None:
            self._source, self._version, self._value, self._taken = x, version, make(), 0
        value = self._value
        self._taken += 1
        if self._taken >= self.members:
            self._source = self._value = None
        return value

    def __deepcopy__(self, memo: dict) -> "SharedInput":
        copy = SharedInput(self.members)
        memo[id(self)] = copy
        return copy


class QuantLinear(nn.Linear):
    """Packed b-bit weight, per-token quantized input, exact integer product.

    A subclass of `nn.Linear` with every tensor a frozen Parameter, which is what PEFT, accelerate's offloading and
    diffusers' saving expect. Tensors are described in `s2q.checkpoint`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: SchemeSpec,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # nn.Linear's own would allocate a float weight
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.tensor_names = tuple(tensor_layout(out_features, in_features, scheme))
        for name, (shape, kind) in tensor_layout(out_features, in_features, scheme).items():
            self.register_parameter(name, _frozen(torch.empty(shape, dtype=kind, device=device)))
        self.register_parameter(
            "bias", _frozen(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        )
        self.shared_input: SharedInput | None = None
        self.input_dtype: torch.dtype | None = None
        """What inputs are cast to first, and so what the output is; None leaves them as they are."""
        # G of the tokens; a stored range is one for all of them.
        self.act_groups = 1 if scheme.input_range else group_count(in_features, scheme.act_group_size)
        self._asked = (
            in_features,
            out_features,
            ActFormat(scheme.act_bits or WEIGHT_ONLY, scheme.symmetric_acts, self.act_groups),
            scheme.weight_bits,
            scheme.symmetric_weights,
            group_count(in_features, scheme.group_size),
            scheme.factors(in_features) if scheme.kronecker else None,
            scheme.input_range,
            scheme.low_rank,
            scheme.low_rank_on_codes,
            scheme.hadamard_block or 0,
        )

    @property
    def weight(self) -> Tensor:
        """The bytes of the packed weight, int8: adapters ask for their device, T5 for their dtype.

        T5 casts what it hands to a linear to the dtype of its weight, unless that is int8.
        """
        return self.weight_packed.view(torch.int8)

    def packed_tensors(self) -> dict[str, Tensor]:
        """Name → tensor of everything but the bias, as `s2q.checkpoint.check_linear` takes it."""
        return {name: getattr(self, name) for name in self.tensor_names}

    def input_transform(self) -> InputTransform:
        """What is done to the input before it is rounded."""
        # Read past `nn.Module`'s attributes, whose look-up takes longer than a small product.
        own = self._parameters
        return InputTransform(*map(own.get, STORED), self.scheme.hadamard_block or 0)

    def packed_weight(self) -> PackedWeight:
        """The weight as it is stored."""
        own = self._parameters
        return PackedWeight(
            own["weight_packed"], own["weight_scale"], own.get("weight_zero_point"), self.scheme.weight_bits
        )

    def problem(self, x: Tensor, gelu_tanh: bool = False) -> Problem:
        """What is asked of a backend for `x` [M, K]."""
        return Problem(x.device, x.dtype, x.shape[0], *self._asked, gelu_tanh)

    def low_rank(self) -> LowRank | None:
        """The branch beside the codes, if there is one."""
        if not self.scheme.low_rank:
            return None
        return LowRank(self.low_rank_down, self.low_rank_up, self.scheme.low_rank_on_codes)

    def forward(self, x: Tensor, gelu_tanh: bool = False) -> Tensor:
        """[..., K] → [..., N] in the dtype of `x`, or in `input_dtype`.

        Args:
            gelu_tanh: GELU by tanh of the output, in the same pass; it has no gradient.
        """
        scheme = self.scheme
        x = x if self.input_dtype is None else x.to(self.input_dtype)
        direct = scheme.act_bits is None or torch.compiler.is_compiling()
        if direct or (torch.is_grad_enabled() and x.requires_grad):
            low_rank, transform = self.low_rank(), self.input_transform()
            out = quantized_linear(
                x.reshape(-1, self.in_features),
                *self.packed_weight()[:3],
                self.bias,
                *transform.tensors(),
                None if low_rank is None else low_rank.down,
                None if low_rank is None else low_rank.up,
                scheme.weight_bits,
                WEIGHT_ONLY if scheme.act_bits is None else scheme.act_bits,
                scheme.symmetric_acts,
                self.act_groups,
                scheme.low_rank_on_codes,
                transform.hadamard,
                gelu_tanh,
            )
            return out.view(*x.shape[:-1], self.out_features)
        # What looks at calls of torch, as int8 attention does, takes longer over the dozens in there than they do.
        with torch._C.DisableTorchFunction():
            return self._in_two_steps(x, gelu_tanh)

    def _in_two_steps(self, x: Tensor, gelu_tanh: bool) -> Tensor:
        """`forward` without an operator around it; linears that share an input take the first step once."""
        flat = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        choice = choose(self.problem(flat, gelu_tanh))

        def make() -> QuantizedInput:
            return quantize_input(choice, flat, self.input_transform())

        inputs = make() if self.shared_input is None else self.shared_input.get(x, make)
        out = multiply(choice, inputs, self.packed_weight(), self._parameters["bias"], self.low_rank())
        return out if x.ndim == 2 else out.view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Every `.to`, `.half`, `.cuda` comes here: scales, transforms and branches move, but are never cast.

        Layerwise casting would otherwise round the scales to 8 bits; the bias, too, stays in at least 16.
        """
        quantized = {id(self._parameters[name]) for name in self.tensor_names}

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            cast = new.dtype != tensor.dtype and (id(tensor) in quantized or new.itemsize < 2)
            return tensor.to(new.device) if cast else new

        return super()._apply(moved, recurse)

    def dequantize(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """The float linear with the same weight, the transform undone; inputs are no longer quantized."""
        weight = float_weight(self.packed_weight(), self.in_features, self.low_rank())
        transform = self.input_transform()
        if transform.left is not None:
            weight = kronecker_apply(weight, transform.left.mT, transform.right.mT)
        if transform.hadamard:
            weight = hadamard_blocks(weight, transform.hadamard)
        if transform.scale is not None:
            weight = weight * transform.scale
        dtype = dtype or (self.bias.dtype if self.bias is not None else torch.float32)
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = _frozen(weight.to(dtype))
        if self.bias is not None:
            linear.bias = _frozen(self.bias.detach().to(dtype))
        return linear

    def extra_repr(self) -> str:
        act = self.scheme.act_bits or 16
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, W{self.scheme.weight_bits}A{act}"
        )


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
