"""The packed linear: its numbers against the definition, and its manners as an `nn.Linear`."""

import copy

import pytest
import torch
from definition import defined
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import make_linear
from torch import nn
from torch.overrides import TorchFunctionMode

import s2q.runtime.linear as module
from s2q.runtime import reference
from s2q.runtime.integer import CHUNK_ROWS
from s2q.runtime.linear import QuantLinear, SharedInput
from s2q.runtime.native import library


def tokens(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=80, deadline=None)
@given(
    weight_bits=st.integers(2, 8),
    act_bits=st.integers(4, 8),
    rows=st.sampled_from([1, 2, 5, 33]),
    columns=st.sampled_from([1, 7, 8, 12, 31, 32, 64, 100]),
    outputs=st.sampled_from([1, 3, 8, 24]),
    change=st.sampled_from([{}, {}, {"transform": True}, {"hadamard": 1}, {"hadamard": 4}]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    symmetric_weights=st.booleans(),
    symmetric_acts=st.booleans(),
    group_size=st.sampled_from([None, 1, 8, 32]),
    groups_of=st.sampled_from(["both", "weight", "tokens"]),
    input_range=st.booleans(),
)
def test_integers_give_the_definition_bit_for_bit(
    weight_bits, act_bits, rows, columns, outputs, change, bias, dtype, group_size, groups_of, **scheme
) -> None:
    assume(columns % change.get("hadamard", 1) == 0)
    scheme["group_size"] = None if groups_of == "tokens" else group_size
    scheme["act_group_size"] = None if groups_of == "weight" else group_size
    linear = make_linear(outputs, columns, weight_bits, act_bits, bias=bias, **change, **scheme)
    x = tokens(rows, columns, dtype=dtype)
    y = linear(x)
    assert y.dtype == dtype
    assert torch.equal(y, defined(linear, x))


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("rows", [CHUNK_ROWS + extra for extra in (-1, 0, 1)])
def test_no_row_is_lost_between_two_chunks(rows: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "native" and library.instruction_set() is None:
        pytest.skip("s2q was installed without a C compiler")
    monkeypatch.setenv("S2Q_BACKEND", backend)
    linear = make_linear(16, 24, 4, 6, transform=True)
    x = tokens(rows, 24)
    assert torch.equal(linear(x), defined(linear, x))


def test_the_largest_sums_do_not_saturate() -> None:
    linear = make_linear(8, 64, 8, 8)
    x = torch.ones(4, 64)
    linear.weight_packed.data.zero_()  # offset binary: every code is −128
    assert torch.equal(linear(x), defined(linear, x))
    total = reference.integer_product(torch.full((1, 64), 127, dtype=torch.int8), torch.full((1, 64), -128).char())
    assert total.item() == 64 * 127 * -128


@pytest.mark.parametrize("transform", [False, True])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
def test_weight_only_equals_the_float_linear(weight_bits: int, transform: bool) -> None:
    linear = make_linear(24, 36, weight_bits, None, transform=transform)
    x = tokens(5, 36)
    assert torch.allclose(linear(x), linear.dequantize()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act_bits", [6, None])
def test_any_number_of_leading_dimensions_is_taken(act_bits: int | None) -> None:
    linear = make_linear(8, 12, 4, act_bits)
    x = tokens(2, 3, 4, 12)
    y = linear(x)
    assert y.shape == (2, 3, 4, 8)
    assert torch.equal(y[1, 2], linear(x[1, 2]))
    assert linear(tokens(12)).shape == (8,)


def test_views_that_are_not_contiguous_are_read_right() -> None:
    linear = make_linear(8, 12, 4, 6)
    x = tokens(12, 5).mT
    assert torch.equal(linear(x), linear(x.contiguous()))


@pytest.mark.parametrize("act_bits", [6, None])
def test_the_callers_input_is_left_alone(act_bits: int | None) -> None:
    linear = make_linear(8, 12, 4, act_bits, transform=False)
    x = tokens(5, 12)
    before = x.clone()
    linear(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_memory_is_bits_and_no_float_weight_is_hidden(weight_bits: int) -> None:
    linear = make_linear(64, 96, weight_bits, 6, bias=False)
    assert linear.weight_packed.nbytes == 64 * 96 * weight_bits // 8
    parameters = list(linear.parameters())
    assert all(p.numel() <= 96 for p in parameters if p.is_floating_point())
    assert not any(p.requires_grad for p in parameters)
    assert not list(linear.buffers())
    linear(tokens(3, 96))
    held = [value for value in vars(linear).values() if isinstance(value, torch.Tensor)]
    assert not held, "a forward leaves a tensor behind"


@pytest.mark.parametrize("change", [{}, {"transform": True}, {"hadamard": 8}])
@pytest.mark.parametrize("act_bits", [6, None])
def test_compiled_equals_eager_without_a_graph_break(act_bits: int | None, change: dict) -> None:
    linear = make_linear(16, 24, 4, act_bits, **change)
    x = tokens(2, 5, 24)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), linear(x))


@pytest.mark.parametrize("change", [{}, {"transform": True}, {"hadamard": 8}])
@pytest.mark.parametrize("act_bits", [4, 8, None])
def test_gradient_of_the_input_is_that_of_the_dequantized_linear(act_bits: int | None, change: dict) -> None:
    linear = make_linear(16, 24, 4, act_bits, **change)
    upstream = tokens(5, 16, seed=1)
    gradients = []
    for layer in (linear, linear.dequantize()):
        x = tokens(5, 24).requires_grad_()
        layer(x).backward(upstream)
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act_bits", [6, None])
def test_output_does_not_depend_on_whether_gradients_are_wanted(act_bits: int | None) -> None:
    linear = make_linear(16, 24, 4, act_bits, transform=True)
    x = tokens(5, 24)
    assert torch.equal(linear(x.clone().requires_grad_()).detach(), linear(x))


@pytest.mark.parametrize("change", [{}, {"transform": True}, {"hadamard": 8}])
def test_dequantized_is_a_plain_linear_close_to_the_packed_one(change: dict) -> None:
    linear = make_linear(16, 24, 4, 8, **change)
    plain = linear.dequantize(torch.bfloat16)
    assert type(plain) is nn.Linear
    assert plain.weight.dtype == plain.bias.dtype == torch.bfloat16
    x = tokens(50, 24)
    error = linear.dequantize()(x) - linear(x)
    assert error.norm() < 0.05 * linear(x).norm()


def test_a_deep_copy_stands_on_its_own() -> None:
    linear = make_linear(16, 24, 4, 6, transform=True)
    x = tokens(5, 24)
    before = linear(x)
    other = copy.deepcopy(linear)
    assert torch.equal(other(x), before)
    other.weight_packed.data.zero_()
    assert torch.equal(linear(x), before)
    assert not torch.equal(other(x), before)


def test_printing_tells_sizes_and_bits() -> None:
    text = repr(make_linear(16, 24, 4, 6))
    assert "24, 16" in text
    assert "W4A6" in text
    assert "W4A16" in repr(make_linear(16, 24, 4, None))


class TestSharedInput:
    """q, k and v quantize their common input once, and nobody ever gets a stale one."""

    @pytest.fixture
    def trio(self) -> list[QuantLinear]:
        """Three linears of one group: same scheme, same transform, other weights."""
        layers = [make_linear(8, 24, 4, 6, transform=True) for _ in range(3)]
        shared = SharedInput(len(layers))
        for index, layer in enumerate(layers):
            layer.weight_scale.data = layer.weight_scale * (index + 1)
            layer.shared_input = shared
        return layers

    @pytest.fixture
    def count(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one entry whenever an input is quantized."""
        calls: list[int] = []
        original = module.quantize_input

        def counted(choice, x, transform):
            calls.append(x.shape[0])
            return original(choice, x, transform)

        monkeypatch.setattr(module, "quantize_input", counted)
        return calls

    def test_one_input_is_quantized_once(self, trio: list[QuantLinear], count: list[int]) -> None:
        x = tokens(5, 24)
        results = [layer(x) for layer in trio]
        assert len(count) == 1
        for layer, y in zip(trio, results, strict=True):
            assert torch.equal(y, defined(layer, x))

    def test_any_order_and_any_repetition_is_right(self, trio: list[QuantLinear]) -> None:
        x, z = tokens(5, 24), tokens(5, 24, seed=1)
        calls = [(2, x), (0, x), (0, z), (0, x), (1, x), (1, x), (2, z), (1, z), (0, z), (0, z)]
        for index, value in calls:
            assert torch.equal(trio[index](value), defined(trio[index], value))

    def test_one_linear_alone_is_right(self, trio: list[QuantLinear]) -> None:
        for seed in range(5):
            x = tokens(5, 24, seed=seed)
            assert torch.equal(trio[1](x), defined(trio[1], x))

    def test_an_input_overwritten_in_place_is_not_mistaken_for_the_old_one(self, trio: list[QuantLinear]) -> None:
        x = tokens(5, 24)
        trio[0](x)
        x.mul_(3)
        assert torch.equal(trio[1](x), defined(trio[1], x))

    def test_the_input_is_let_go_when_all_have_taken_it(self, trio: list[QuantLinear]) -> None:
        x = tokens(5, 24)
        for layer in trio:
            layer(x)
        assert trio[0].shared_input._source is None
        assert trio[0].shared_input._value is None

    def test_copies_share_among_themselves_and_not_with_the_original(self, trio: list[QuantLinear]) -> None:
        copies = copy.deepcopy(nn.ModuleList(trio))
        assert len({id(layer.shared_input) for layer in copies}) == 1
        assert copies[0].shared_input is not trio[0].shared_input


def test_what_looks_at_calls_of_torch_sees_none_of_a_linears_own() -> None:
    class Seen(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.functions = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.functions.append(function)
            return function(*args, **(kwargs or {}))

    linear, x = make_linear(24, 16, 4, 8), tokens(2, 3, 16)
    with torch.no_grad():
        expected = linear(x)
        with Seen() as seen:
            y = linear(x)
    assert torch.equal(y, expected)
    assert seen.functions == []
