"""Int8 attention comes and goes without a trace, says what it leaves to torch, and is on where it says so."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import make_inputs, make_transformer
from tiny_families import make_hunyuan, make_hunyuan_inputs, make_ltx, make_ltx_inputs, make_wan, make_wan_inputs
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import s2q
from s2q.runtime.attention import attention_of, int8_attention, why_not

FAMILIES = {
    "cogvideox": (make_transformer, make_inputs),
    "wan": (make_wan, make_wan_inputs),
    "hunyuanvideo": (make_hunyuan, make_hunyuan_inputs),
    "ltx": (make_ltx, make_ltx_inputs),
}


class Plain(nn.Module):
    """Attention alone; `fails` raises in the middle."""

    fails = False

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        out = scaled_dot_product_attention(query, key, value, **more)
        if self.fails:
            raise RuntimeError("broken off")
        return out


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_little_in_every_family_and_leaves_nothing_behind(family: str) -> None:
    make_model, make_arguments = FAMILIES[family]
    model, inputs = make_model(), make_arguments()
    before, keys = output(model, inputs), list(model.state_dict())
    with int8_attention(model) as installed:
        during = output(model, inputs)
        assert list(model.state_dict()) == keys
    assert installed.computed > 0
    assert not installed.declined
    assert not torch.equal(during, before)
    assert (during - before).norm() < 0.01 * before.norm()
    assert torch.equal(output(model, inputs), before)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    installed.remove()  # a second time does nothing


def test_with_and_without_native_code_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_hunyuan(), make_hunyuan_inputs()
    with int8_attention(model):
        native = output(model, inputs)
        monkeypatch.setenv("S2Q_BACKEND", "torch")
        assert torch.equal(output(model, inputs), native)
        assert "S2Q_BACKEND is torch" in attention_of(model)["by"]


@pytest.mark.parametrize("family", ["cogvideox", "wan"])
def test_compiled_models_compute_the_same_and_forget_it_when_it_is_removed(family: str) -> None:
    make_model, make_arguments = FAMILIES[family]
    model, inputs = make_model(), make_arguments()
    before = output(model, inputs)
    with int8_attention(model):
        during = output(model, inputs)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(output(compiled, inputs), during, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output(compiled, inputs), before, rtol=1e-5, atol=1e-6)


def test_training_gets_its_gradient_from_torch() -> None:
    query, key, value = tokens(1, 2, 5, 8)
    query.requires_grad_()
    model = Plain()
    with int8_attention(model) as installed:
        model(query, key, value).sum().backward()
    assert query.grad is not None
    assert installed.computed == 0
    assert dict(installed.declined) == {"it has no gradient": 1}


DECLINED: dict[str, tuple[Callable[[list[Tensor]], dict[str, Any]], str]] = {
    "dropout": (lambda x: {"dropout_p": 0.5}, "dropout"),
    "causal": (lambda x: {"is_causal": True}, "causal"),
    "grouped queries": (lambda x: {"enable_gqa": True}, "grouped"),
    "float64": (lambda x: {name: t.double() for name, t in zip(("query", "key", "value"), x, strict=True)}, "float64"),
    "float64 mask": (lambda x: {"attn_mask": torch.zeros(5, 5, dtype=torch.float64)}, "float64"),
    "three dimensions": (
        lambda x: {name: t[0] for name, t in zip(("query", "key", "value"), x, strict=True)},
        "B, H, S, D",
    ),
    "heads of one for all": (lambda x: {"key": x[1][:, :1]}, "B, H, S, D"),
    "no keys": (lambda x: {"key": x[1][:, :, :0], "value": x[2][:, :, :0]}, "at least one"),
    "another device": (
        lambda x: {name: t.to("meta") for name, t in zip(("query", "key", "value"), x, strict=True)},
        "not on meta",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_it_does_not_take_is_named(case: str) -> None:
    change, said = DECLINED[case]
    x = tokens(1, 2, 5, 8)
    call = dict(zip(("query", "key", "value"), x, strict=True))
    assert why_not(**call) is None
    assert said in why_not(**(call | change(x)))


def test_what_it_does_not_take_is_torchs_and_counted() -> None:
    query, key, value = tokens(1, 2, 5, 8)
    with int8_attention(model := Plain()) as installed:
        out = model(query, key, value, is_causal=True)
        assert attention_of(model)["declined"] == dict(installed.declined)
    assert torch.equal(out, scaled_dot_product_attention(query, key, value, is_causal=True))
    assert sum(installed.declined.values()) == 1


def test_a_scale_of_the_models_own_is_used() -> None:
    query, key, value = tokens(1, 2, 40, 8)
    with int8_attention(model := Plain()):
        out = model(query, key, value, scale=2.0)
    expected = scaled_dot_product_attention(query, key, value, scale=2.0)
    assert (out - expected).norm() < 0.02 * expected.norm()


def test_it_is_on_in_its_transformer_alone_even_after_an_error() -> None:
    x = tokens(1, 2, 5, 8)
    model, other = Plain(), Plain()
    expected = scaled_dot_product_attention(*x)
    with int8_attention(model) as installed:
        model.fails = True
        with pytest.raises(RuntimeError, match="broken off"):
            model(*x)
        assert torch.equal(other(*x), expected)
        assert torch.equal(scaled_dot_product_attention(*x), expected)
        model.fails = False
        assert not torch.equal(model(*x), expected)
    assert installed.computed == 2


def test_twice_is_refused_and_after_removal_it_can_be_installed_again() -> None:
    model = Plain()
    installed = s2q.int8_attention(model)
    with pytest.raises(ValueError, match="already"):
        int8_attention(model)
    installed.remove()
    assert attention_of(model) == {"kind": "float"}
    int8_attention(model).remove()


def test_a_model_without_such_attention_is_said_to_have_none() -> None:
    model = nn.Linear(4, 4)
    with int8_attention(model), pytest.warns(UserWarning, match="no attention of Linear"):
        model(torch.zeros(1, 4))


def test_a_model_with_it_warns_of_nothing_and_its_copy_is_one_by_itself() -> None:
    x = tokens(1, 2, 5, 8)
    expected = scaled_dot_product_attention(*x)
    with warnings.catch_warnings(), int8_attention(model := Plain()) as installed:
        warnings.simplefilter("error")
        model(*x)
        twin = copy.deepcopy(model)
        assert not torch.equal(twin(*x), expected)
        assert installed.computed == 1
    assert not torch.equal(twin(*x), expected)
    twin._s2q_int8_attention.remove()
    assert torch.equal(twin(*x), expected)
    assert torch.equal(model(*x), expected)
