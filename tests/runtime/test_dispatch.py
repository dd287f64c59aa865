"""The first backend that takes a problem does it, and whoever quantized, the product is the definition's."""

from typing import Any

import pytest
import torch
from definition import defined
from tiny import make_linear

from s2q.runtime import dispatch, reference
from s2q.runtime.integer import TorchBackend
from s2q.runtime.native import library

needs_native = pytest.mark.skipif(library.instruction_set() is None, reason="s2q was installed without a C compiler")


class Picky(TorchBackend):
    """Takes the steps it is told to, and counts them; its codes stand reversed, which only it can undo."""

    name = "picky"

    def __init__(self, *steps: str):
        self.steps, self.done = steps, []

    def why_not_quantize(self, problem: Any) -> str | None:
        return None if "quantize" in self.steps else "it never does"

    def why_not_multiply(self, problem: Any) -> str | None:
        return None if "multiply" in self.steps else "it never does"

    def quantize_input(self, x: Any, transform: Any, problem: Any) -> reference.QuantizedInput:
        self.done.append("quantize")
        made = reference.quantize_input(x, transform, problem.acts)
        return made._replace(codes=made.codes.flip(1), backend=self.name)

    def natural(self, inputs: Any, problem: Any) -> reference.QuantizedInput:
        return inputs._replace(codes=inputs.codes.flip(1), backend=None)

    def multiply(self, inputs: Any, *rest: Any) -> torch.Tensor:
        self.done.append("multiply")
        inputs = self.natural(inputs, None) if inputs.backend == self.name else inputs
        return super().multiply(inputs, *rest)


@pytest.fixture
def linear():
    return make_linear(24, 64, 4, 6, symmetric_acts=False, act_group_size=16)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(19, 64, generator=torch.Generator().manual_seed(0))


def use(monkeypatch: pytest.MonkeyPatch, *backends: Any) -> None:
    monkeypatch.setattr(dispatch, "BACKENDS", backends)
    dispatch._choose.cache_clear()


@pytest.fixture(autouse=True)
def _forget():
    yield
    dispatch._choose.cache_clear()


@pytest.mark.parametrize("steps", [("quantize", "multiply"), ("quantize",), ("multiply",), ()])
def test_steps_of_different_backends_fit_together(steps: tuple[str, ...], linear, x, monkeypatch) -> None:
    picky = Picky(*steps)
    for others in ((TorchBackend(),), (*dispatch.BACKENDS,)):
        use(monkeypatch, picky, *others)
        choice = dispatch.choose(linear.problem(x))
        assert (choice.multiply is picky) == ("multiply" in steps)
        assert torch.equal(linear(x), defined(linear, x))


def test_the_product_can_decline_an_input_of_its_own_backend(linear, x, monkeypatch) -> None:
    picky = Picky("quantize")
    use(monkeypatch, picky, *dispatch.BACKENDS)
    choice = dispatch.choose(linear.problem(x))._replace(quantize=picky)
    inputs = dispatch.quantize_input(choice, x, linear.input_transform())
    y = dispatch.multiply(choice, inputs, linear.packed_weight(), linear.bias, None)
    assert picky.done == ["quantize"]
    assert torch.equal(y, defined(linear, x))


@needs_native
def test_native_codes_are_multiplied_by_torch_too(linear, x) -> None:
    native, _, torchs = dispatch.BACKENDS
    choice = dispatch.Choice(linear.problem(x), native, torchs, ())
    inputs = dispatch.quantize_input(choice, x, linear.input_transform())
    y = dispatch.multiply(choice, inputs, linear.packed_weight(), linear.bias, None)
    assert torch.equal(y, defined(linear, x))


def test_reasons_are_kept_in_the_order_of_asking(linear, x, monkeypatch) -> None:
    use(monkeypatch, Picky("quantize"), TorchBackend())
    assert dispatch.choose(linear.problem(x)).declined == ("picky does not multiply: it never does",)


def test_the_variable_names_who_is_asked_alone(linear, x, monkeypatch) -> None:
    monkeypatch.setenv("S2Q_BACKEND", "torch")
    assert dispatch.choose(linear.problem(x)).multiply.name == "torch"
    monkeypatch.setenv("S2Q_BACKEND", "fast")
    with pytest.raises(ValueError, match="S2Q_BACKEND is 'fast': allowed are native and triton and torch"):
        dispatch.choose(linear.problem(x))
    monkeypatch.setattr(library, "load", lambda: "not built")
    monkeypatch.setenv("S2Q_BACKEND", "native")
    with pytest.raises(RuntimeError, match="S2Q_BACKEND is native, which cannot work here: not built"):
        dispatch.choose(linear.problem(x))


@needs_native
def test_where_torch_has_amx_or_the_machine_is_plain_torch_multiplies(linear, x, monkeypatch) -> None:
    plain = make_linear(24, 64, 4, 6)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    try:
        library.use([name for name in library.instruction_sets() if name != library.AMX][-1])
        dispatch._choose.cache_clear()
        assert "AMX" in dispatch.choose(plain.problem(x)).declined[0]
        assert dispatch.choose(linear.problem(x)).multiply.name == dispatch.choose(linear.problem(x)).quantize.name
        library.use("baseline")
        dispatch._choose.cache_clear()
        assert "AVX2" in dispatch.choose(linear.problem(x)).declined[0]
        monkeypatch.setenv("S2Q_BACKEND", "native")
        assert dispatch.choose(linear.problem(x)).multiply.name == "native"
    finally:
        library.use(None)


@pytest.mark.skipif(library.AMX not in library.instruction_sets(), reason="this machine has no AMX")
def test_amx_of_our_own_takes_what_fits_its_squares_and_leaves_the_rest_as_it_was() -> None:
    dispatch._choose.cache_clear()
    many, few = torch.zeros(16, 64), torch.zeros(15, 64)
    plain, wide = make_linear(24, 64, 4, 6), make_linear(24, 64, 8, 8)
    assert dispatch.choose(plain.problem(many)).multiply.name == "native"
    assert "AMX" in dispatch.choose(plain.problem(few)).declined[0]
    assert dispatch.choose(wide.problem(many)).multiply.name == "torch"
    for x in (many, few):
        assert torch.equal(plain(x), torch.zeros(len(x), 24) + plain.bias)
