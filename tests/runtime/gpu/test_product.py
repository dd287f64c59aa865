"""The product of codes is exact, and what follows it is the definition bit for bit; floats are as good as torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_linear
from torch import Tensor

from s2q.numerics.packing import unpack
from s2q.runtime import integer
from s2q.runtime.gpu import backend
from s2q.runtime.linear import QuantLinear
from s2q.runtime.reference import (
    ActFormat,
    CodedWeight,
    QuantizedInput,
    gelu_tanh,
    integer_product,
    low_rank_input,
    quantize_input,
    scaled_product,
)

product = pytest.importorskip("s2q.runtime.gpu.product")
tuning = pytest.importorskip("s2q.runtime.gpu.tuning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def inputs_of(linear: QuantLinear, rows: int, seed: int = 0) -> QuantizedInput:
    """What the definition makes of random tokens; `linear` on the CPU."""
    x = torch.randn(rows, linear.in_features, generator=torch.Generator().manual_seed(seed))
    acts = ActFormat(linear.scheme.act_bits, linear.scheme.symmetric_acts, linear.act_groups)
    return quantize_input(x, linear.input_transform(), acts)


def defined(linear: QuantLinear, inputs: QuantizedInput) -> Tensor:
    """The definition's output before its cast, float32 [M, N]."""
    weight, low_rank = linear.packed_weight(), linear.low_rank()
    coded = CodedWeight(unpack(weight.packed, weight.bits, linear.in_features), weight.scale, weight.zero)
    y = scaled_product(inputs, coded, integer_product)
    if low_rank is not None:
        y = y + low_rank_input(inputs, low_rank) @ low_rank.up.float().mT
    return y if linear.bias is None else y + linear.bias.float()


def multiplied(
    device: str, linear: QuantLinear, inputs: QuantizedInput, dtype: torch.dtype = torch.float32, gelu: bool = False
) -> Tensor:
    """What the kernel makes of the same, on the CPU."""
    there = linear.to(device)
    inputs = QuantizedInput(*(t.to(device) if isinstance(t, Tensor) else t for t in inputs))
    assert backend.why_not_multiply(inputs, there.packed_weight(), dtype) is None
    y = backend.multiply(inputs, there.packed_weight(), there.bias, there.low_rank(), dtype, gelu).cpu()
    linear.to("cpu")
    return y


def casts(y: Tensor, dtype: torch.dtype, device: str) -> list[Tensor]:
    """float32 → `dtype`, as the kernel may do it: the interpreter cuts bfloat16 off where hardware rounds."""
    cut = (y.view(torch.int32) & -0x10000).view(torch.float32)
    return [y.to(dtype)] + [cut.to(dtype)] * (device == "cpu" and dtype == torch.bfloat16)


@settings(max_examples=30, deadline=None)
@given(
    weight_bits=st.integers(2, 8),
    act_bits=st.integers(4, 8),
    rows=st.sampled_from([1, 2, 33]),
    columns=st.sampled_from([8, 31, 64, 100]),
    outputs=st.sampled_from([1, 3, 17]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    symmetric_weights=st.booleans(),
    symmetric_acts=st.booleans(),
    group_size=st.sampled_from([None, 8, 20, 32]),
    groups_of=st.sampled_from(["both", "weight", "tokens"]),
    input_range=st.booleans(),
)
def test_products_are_the_definition_bit_for_bit(
    device, weight_bits, act_bits, rows, columns, outputs, bias, dtype, group_size, groups_of, **scheme
) -> None:
    scheme["group_size"] = None if groups_of == "tokens" else group_size
    scheme["act_group_size"] = None if groups_of == "weight" else group_size
    linear = make_linear(outputs, columns, weight_bits, act_bits, bias=bias, **scheme)
    inputs = inputs_of(linear, rows)
    y = multiplied(device, linear, inputs, dtype)
    assert any(torch.equal(y, expected) for expected in casts(defined(linear, inputs), dtype, device))


@pytest.mark.parametrize("group_size", [None, 64, 128])
@pytest.mark.parametrize(("weight_bits", "act_bits"), [(4, 4), (4, 6), (4, 8), (8, 8)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_scheme_of_the_recipes_is_the_definition(device, weight_bits, act_bits, group_size, symmetric) -> None:
    linear = make_linear(
        17, 256, weight_bits, act_bits, group_size=group_size, act_group_size=group_size,
        symmetric_weights=symmetric, symmetric_acts=symmetric,
    )  # fmt: skip
    inputs = inputs_of(linear, 33)
    assert torch.equal(multiplied(device, linear, inputs), defined(linear, inputs))


@pytest.mark.parametrize("groups_of", ["group_size", "act_group_size"])
@pytest.mark.parametrize("weight_bits", [4, 8])
def test_zero_points_of_one_side_meet_the_groups_of_the_other(device: str, weight_bits: int, groups_of: str) -> None:
    linear = make_linear(17, 96, weight_bits, 6, symmetric_weights=False, symmetric_acts=False, **{groups_of: 32})
    inputs = inputs_of(linear, 3)
    assert torch.equal(multiplied(device, linear, inputs), defined(linear, inputs))


@pytest.mark.parametrize("columns", [64, 15360])
def test_the_largest_sums_do_not_saturate(device: str, columns: int) -> None:
    linear = make_linear(8, columns, 8, 8, symmetric_acts=False)
    linear.weight_packed.data.zero_()  # offset binary: every code is −128
    linear.weight_scale.data.fill_(1.0)
    codes = torch.full((4, columns), 127, dtype=torch.int8)
    inputs = QuantizedInput(codes, torch.ones(4, 1), torch.full((4, 1), -128.0))
    y = multiplied(device, linear, inputs)
    assert torch.equal(y, defined(linear, inputs))
    assert (y - linear.bias)[0, 0] == -128 * 255 * columns


@pytest.mark.parametrize("on_codes", [False, True])
@pytest.mark.parametrize("rank", [1, 16, 20])
def test_the_branch_is_added_to_float32_accuracy(device: str, rank: int, on_codes: bool) -> None:
    linear = make_linear(40, 96, 4, 6, low_rank=rank, low_rank_on_codes=on_codes, symmetric_weights=False)
    inputs = inputs_of(linear, 33)
    expected = defined(linear, inputs)
    assert (multiplied(device, linear, inputs) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("group_size", [None, 32])
def test_programs_that_make_one_tile_after_the_other_give_the_same_bits(device, group_size, monkeypatch) -> None:
    config = tuning._config(tuning.INTERPRETED._replace(persistent=True))
    monkeypatch.setattr(product._multiply_kernel, "configs", [config])
    # 4 × 7 tiles for three programs in the interpreter; the last ones of both sides are not full.
    linear = make_linear(100, 96, 4, 6, group_size=group_size, act_group_size=group_size, symmetric_weights=False)
    inputs = inputs_of(linear, 101)
    assert torch.equal(multiplied(device, linear, inputs), defined(linear, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rank", [0, 4])
def test_gelu_of_the_sums_is_taken_before_they_are_narrowed(device: str, rank: int, dtype: torch.dtype) -> None:
    linear = make_linear(40, 96, 4, 6, low_rank=rank)
    inputs = inputs_of(linear, 33)
    expected = gelu_tanh(defined(linear, inputs))
    made = multiplied(device, linear, inputs, dtype, gelu=True)
    assert made.dtype == dtype
    error = 2e-6 if dtype == torch.float32 else 2**-10
    torch.testing.assert_close(made.float(), expected, rtol=error, atol=error)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("low_rank", [0, 4])
@pytest.mark.parametrize(("weight_bits", "group_size"), [(4, None), (4, 32), (3, None), (8, 20)])
def test_float_activations_lose_no_more_than_in_torch(device, weight_bits, group_size, rows, low_rank) -> None:
    linear = make_linear(24, 160, weight_bits, None, group_size=group_size, symmetric_weights=False, low_rank=low_rank)
    x, weight = torch.randn(rows, 160, generator=torch.Generator().manual_seed(0)), linear.packed_weight()
    plain = integer.weight_only(x, weight, linear.bias, linear.low_rank())
    exact = x.double() @ integer.float_weight(weight, 160, linear.low_rank()).double().mT + linear.bias.double()
    there = linear.to(device)
    assert backend.why_not_weight_only(x.to(device), there.packed_weight()) is None
    y = backend.weight_only(x.to(device), there.packed_weight(), there.bias, there.low_rank()).cpu()
    # The floor is a few units in the last place, for the tensor cores' own way of adding.
    assert (y - exact).norm() <= 2 * (plain - exact).norm() + 3e-7 * exact.norm()


def test_what_is_declined_is_declined_with_the_reason(device: str) -> None:
    linear = make_linear(8, 32, 4, 6)
    inputs, weight = inputs_of(linear, 2), linear.packed_weight()
    assert "as torch has them" in backend.why_not_multiply(inputs._replace(backend="torch"), weight, torch.float32)
    assert "float64" in backend.why_not_multiply(inputs, weight, torch.float64)
    assert "no tokens" in backend.why_not_multiply(inputs._replace(codes=inputs.codes[:0]), weight, torch.float32)
    assert "no tokens" in backend.why_not_weight_only(torch.zeros(0, 32), weight)
