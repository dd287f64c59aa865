"""The kernels in their place: under a linear, a whole transformer, a compiled model; demanded, refused, chosen."""

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from tiny import make_inputs, make_linear

from s2q.runtime import dispatch
from s2q.runtime.gpu import backend


@pytest.fixture(autouse=True)
def _demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2Q_BACKEND", "triton")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backend's operators that ran."""
    seen: list[str] = []
    for name in ("quantize_input", "multiply", "weight_only"):
        function = getattr(backend, name)

        def noted(*args, name=name, function=function, **kwargs):
            seen.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(backend, name, noted)
    return seen


SCHEMES = {
    "W4A6": {"transform": True},
    "groups": {"group_size": 8, "act_group_size": 8, "symmetric_weights": False, "symmetric_acts": False},
    "branch": {"low_rank": 4},
    "Hadamard blocks": {"hadamard": 32, "act_group_size": 16},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_linear_equals_the_torch_path(scheme, device, calls, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = make_linear(24, 96, 4, 6, **SCHEMES[scheme]).to(device)
    x = torch.randn(2, 9, 96, generator=torch.Generator().manual_seed(0)).to(device)
    y = linear(x)
    assert calls == ["quantize_input", "multiply"]
    monkeypatch.setenv("S2Q_BACKEND", "torch")
    # A value at the edge of a step may fall on either side of it after another order of sums.
    off = (y - linear(x)).abs() > 1e-4 * y.abs().max()
    assert off.float().mean() < 0.05
    assert len(calls) == 2


def test_float_activations_take_the_kernel_too(device: str, calls: list[str]) -> None:
    linear = make_linear(24, 96, 4, None, transform=True).to(device)
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(linear(x), linear.dequantize()(x), rtol=1e-4, atol=1e-4)
    assert calls == ["weight_only"]


def test_a_whole_transformer_equals_the_torch_path(quantized, device, calls, monkeypatch) -> None:
    model = CogVideoXTransformer3DModel.from_pretrained(quantized().folder).eval().to(device)
    inputs = {name: tensor.to(device) for name, tensor in make_inputs(batch=1).items()}
    with torch.no_grad():
        y = model(**inputs).sample
        assert {"quantize_input", "multiply"} <= set(calls)
        monkeypatch.setenv("S2Q_BACKEND", "torch")
        expected = model(**inputs).sample
    assert float((y - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("act_bits", [6, None])
def test_compiled_equals_eager_without_a_graph_break(act_bits: int | None, device: str) -> None:
    linear = make_linear(16, 24, 4, act_bits, transform=True).to(device)
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), linear(x))


def test_what_a_kernel_declines_is_computed_all_the_same(device: str, calls: list[str]) -> None:
    linear = make_linear(8, 32, 4, 6).to(device)
    assert linear(torch.zeros(0, 32, device=device)).shape == (0, 8)
    assert linear(torch.ones(3, 32, device=device, dtype=torch.float64)).dtype == torch.float64
    assert calls == []


def test_demanded_where_it_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_missing", lambda: True)
    with pytest.raises(RuntimeError, match="S2Q_BACKEND is triton, which cannot work here: triton is not installed"):
        dispatch._order("triton")
    monkeypatch.setattr(backend, "_missing", lambda: False)
    monkeypatch.setattr(backend, "_interpreted", lambda: False)
    assert "TRITON_INTERPRET=1" in backend.why_not(torch.device("cpu"))
    monkeypatch.setattr(backend, "_capability", lambda index: (7, 5))
    assert "this one has 7.5" in backend.why_not(torch.device("cuda:0"))
    chosen = dispatch._order("")
    assert [own.name for own in chosen] == ["native", "triton", "torch"]
