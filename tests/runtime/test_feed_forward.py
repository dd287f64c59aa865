"""GELU in the pass of the linear before it: what it computes, and that it stands back where it would change something."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.activations import GELU
from peft import LoraConfig
from tiny import make_inputs, make_linear
from torch import Tensor, nn
from torch.nn import functional

from s2q.runtime.feed_forward import FusedGELU, fuse_gelu, part_gelu
from s2q.runtime.linear import QuantLinear

IN_FLOAT = {"rtol": 2e-6, "atol": 2e-6}


class Spy:
    """The linears of a model that were asked for GELU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.asked: list[QuantLinear] = []
        forward = QuantLinear.forward

        def noted(linear: QuantLinear, x: Tensor, gelu_tanh: bool = False) -> Tensor:
            if gelu_tanh:
                self.asked.append(linear)
            return forward(linear, x, gelu_tanh)

        monkeypatch.setattr(QuantLinear, "forward", noted)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(**make_inputs(), return_dict=False)[0]


def feed_forward(**changes) -> GELU:
    """A `GELU` as diffusers makes it, its linear packed."""
    module = GELU(24, 40, **({"approximate": "tanh"} | changes))
    module.proj = make_linear(40, 24, 4, 6)
    return module


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(33, 24, generator=torch.Generator().manual_seed(1))).to(dtype)


@pytest.mark.parametrize("act_bits", [6, 8, None])
@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("change", [{}, {"low_rank": 4}, {"group_size": 8, "symmetric_weights": False}])
def test_it_is_gelu_of_the_linears_sums(act_bits, backend, change, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend:
        monkeypatch.setenv("S2Q_BACKEND", backend)
    linear = make_linear(40, 24, 4, act_bits, **change)
    expected = functional.gelu(linear(tokens()), approximate="tanh")
    torch.testing.assert_close(linear(tokens(), gelu_tanh=True), expected, **IN_FLOAT)
    assert (expected - linear(tokens())).norm() > 0.1 * expected.norm()


def test_in_half_precision_it_is_rounded_once() -> None:
    linear = make_linear(40, 24, 4, 6)
    x = tokens(torch.bfloat16)
    sums = linear.float()(x.float())
    made = linear(x, gelu_tanh=True)
    assert made.dtype == torch.bfloat16
    exact = functional.gelu(sums, approximate="tanh")
    # bfloat16 has eight bits: half of the last is the most that one rounding loses.
    torch.testing.assert_close(made.float(), exact, rtol=2**-8 + 1e-5, atol=1e-6)
    twice = functional.gelu(linear(x), approximate="tanh").float()
    assert (made.float() - exact).norm() < (twice - exact).norm()


def test_it_is_compiled_without_a_graph_break() -> None:
    module = feed_forward()
    fuse_gelu(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(tokens()), module(tokens()))


def test_of_the_operator_itself_no_gradient_can_be_had() -> None:
    with pytest.raises(NotImplementedError, match="apply GELU to its output instead"):
        make_linear(40, 24, 4, 6)(tokens().requires_grad_(), gelu_tanh=True).sum().backward()


def test_where_a_gradient_is_wanted_it_is_that_of_diffusers_own() -> None:
    plain, fused = feed_forward(), feed_forward()
    fuse_gelu(fused)
    gradients = []
    for module in (plain, fused):
        x = tokens().requires_grad_()
        module(x).sum().backward()
        gradients.append(x.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_other_activations_are_left_alone() -> None:
    for module in (feed_forward(approximate="none"), GELU(24, 40, approximate="tanh")):
        before = module(tokens())
        fuse_gelu(module)
        assert type(module) is GELU
        assert torch.equal(module(tokens()), before)


def test_who_watches_the_linear_sees_what_it_says(spy: Spy) -> None:
    module, seen = feed_forward(), []
    fuse_gelu(module)
    module.proj.register_forward_hook(lambda linear, args, y: seen.append(y))
    y = module(tokens())
    assert not spy.asked
    assert torch.equal(functional.gelu(seen[0], approximate="tanh"), y)


class TestModel:
    def test_every_feed_forward_of_a_loaded_model_takes_one_pass(
        self, model: CogVideoXTransformer3DModel, spy: Spy
    ) -> None:
        y = output(model)
        linears = [block.ff.net[0].proj for block in model.transformer_blocks]
        assert spy.asked == linears
        part_gelu(model)
        spy.asked.clear()
        torch.testing.assert_close(output(model), y, rtol=1e-4, atol=1e-4)
        assert not spy.asked

    def test_an_adapter_on_the_linear_acts_before_gelu(self, model: CogVideoXTransformer3DModel, spy: Spy) -> None:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["ff.net.0.proj"], init_lora_weights=False)
        model.add_adapter(config)
        model.eval()
        y = output(model)
        assert not spy.asked
        part_gelu(model)
        assert torch.equal(output(model), y)

    def test_a_copy_and_a_saved_and_loaded_model_give_the_same_bits(
        self, model: CogVideoXTransformer3DModel, tmp_path: Path
    ) -> None:
        y = output(model)
        model.save_pretrained(tmp_path)
        for other in (copy.deepcopy(model), CogVideoXTransformer3DModel.from_pretrained(tmp_path).eval()):
            assert any(type(module) is FusedGELU for module in other.modules())
            assert torch.equal(output(other), y)

    def test_dequantized_it_is_diffusers_own_again(self, model: CogVideoXTransformer3DModel) -> None:
        model.dequantize()
        kinds = {type(module) for module in model.modules() if isinstance(module, GELU)}
        assert kinds == {GELU}
        output(model)

    def test_offloaded_it_gives_the_same_bits(self, quantized: Callable, model: CogVideoXTransformer3DModel) -> None:
        other = CogVideoXTransformer3DModel.from_pretrained(quantized().folder).eval()
        other.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        assert torch.equal(output(other), output(model))
