"""The simulated linear: its grids, branches and roundings, and that what is packed computes the same."""

import pytest
import torch
from torch import nn

from s2q.numerics.packing import unpack
from s2q.quantization.freeze import freeze
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.schemes import scheme_spec
from s2q.quantization.transforms import SharedTransform
from s2q.recipe import LinearScheme, LowRankSpec, TransformSpec
from s2q.runtime.linear import QuantLinear

K, N = 48, 10


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(scheme: LinearScheme) -> SimulatedLinear:
    linear = nn.Linear(K, N)
    linear.weight.data, linear.bias.data = normal(N, K, seed=7), normal(N, seed=8)
    inputs = SharedTransform(K, scheme, normal(K).abs() + 0.1, torch.Generator().manual_seed(0))
    if scheme.act_range == "static":
        inputs.range = torch.tensor([-2.0, 3.0])
    made = SimulatedLinear(linear, scheme, inputs)
    if scheme.low_rank is not None:
        made.set_branch(0.3 * normal(3, K, seed=1).bfloat16(), 0.3 * normal(N, 3, seed=2).bfloat16())
    if scheme.rounding == "adaround":
        made.start_rounding()
    return made


def packed(simulated: SimulatedLinear) -> QuantLinear:
    scheme = simulated.scheme
    made = QuantLinear(K, N, True, scheme_spec(scheme, K))
    tensors = freeze(simulated, None)
    assert set(tensors) == set(made.tensor_names)
    for name, tensor in tensors.items():
        expected = getattr(made, name)
        assert tensor.shape == expected.shape, name
        assert tensor.dtype == expected.dtype, name
        expected.data = tensor
    made.bias.data = simulated.bias
    return made


SCALE = TransformSpec(alpha=0.5, rotation="none", learned=False)
SCHEMES = {
    "asymmetric": {"symmetric_weights": False, "symmetric_acts": False},
    "asymmetric weights": {"symmetric_weights": False},
    "asymmetric tokens": {"symmetric_acts": False},
    "groups": {"group_size": 16, "act_group_size": 16},
    "groups of the weight": {"group_size": 16},
    "groups of the tokens": {"act_group_size": 16, "symmetric_acts": False},
    "asymmetric groups": {"group_size": 16, "act_group_size": 16, "symmetric_weights": False, "symmetric_acts": False},
    "groups that do not divide": {"group_size": 20},
    "static range": {"act_range": "static"},
    "static asymmetric, groups of the weight": {"act_range": "static", "symmetric_acts": False, "group_size": 16},
    "static learned clip": {"act_range": "static", "act_clip": "learned"},
    "fixed clip": {"act_clip": 0.9, "weight_clip": "mse"},
    "asymmetric mse": {"symmetric_weights": False, "weight_clip": "mse"},
    "branch on floats": {"low_rank": LowRankSpec(rank=3)},
    "branch on codes": {"low_rank": LowRankSpec(rank=3, input="quantized", start="zero")},
    "branch, scale, groups": {"low_rank": LowRankSpec(rank=3), "transform": SCALE, "group_size": 16},
    "branch beside weight only": {"low_rank": LowRankSpec(rank=3), "act_bits": None, "symmetric_weights": False},
    "adaround": {"rounding": "adaround"},
    "adaround, all at once": {
        "rounding": "adaround",
        "transform": SCALE,
        "symmetric_weights": False,
        "group_size": 16,
        "weight_clip": "mse",
    },
}


@pytest.mark.parametrize("act_bits", [4, 8])
@pytest.mark.parametrize("kind", SCHEMES)
def test_what_is_packed_computes_what_was_simulated(kind: str, act_bits: int) -> None:
    scheme = LinearScheme(**{"weight_bits": 4, "act_bits": act_bits} | SCHEMES[kind])
    simulated = layer(scheme)
    if scheme.rounding == "adaround":  # decided, as at the end of training
        simulated.round_logit.data = 20 * simulated.round_logit.data.sign()
    x = normal(20, K, seed=3)
    with torch.no_grad():
        assert (packed(simulated)(x) - simulated(x)).norm() < 1e-3 * simulated(x).norm()


@pytest.mark.parametrize("kind", ["asymmetric", "branch on codes", "branch on floats", "groups"])
def test_it_can_be_dequantized(kind: str) -> None:
    scheme = LinearScheme(**{"weight_bits": 8, "act_bits": 8} | SCHEMES[kind])
    linear, x = packed(layer(scheme)), normal(20, K, seed=3)
    assert (linear.dequantize()(x) - linear(x)).norm() < 0.03 * linear(x).norm()


def test_each_channels_clip_is_the_one_with_the_least_error() -> None:
    simulated = layer(LinearScheme(weight_bits=3, act_bits=8, weight_clip="mse"))
    plain = layer(LinearScheme(weight_bits=3, act_bits=8))
    errors = [(s.rounded_weight(s.weight) - s.weight).square().sum(1) for s in (simulated, plain)]
    assert bool((errors[0] <= errors[1]).all())
    assert float(errors[0].sum()) < 0.9 * float(errors[1].sum())


def test_adaround_starts_at_the_float_weight_and_ends_on_the_grid() -> None:
    simulated = layer(LinearScheme(weight_bits=4, act_bits=8, rounding="adaround"))
    inside = simulated.rounded_weight(simulated.weight)
    assert torch.allclose(inside, simulated.weight, atol=1e-5)
    up = torch.ones_like(simulated.round_logit)
    simulated.round_logit.data = up * 5
    codes = unpack(freeze(simulated, None)["weight_packed"], 4, K)
    assert torch.equal(codes.float(), (simulated.round_floor + 1).clamp(-8, 7))


def test_a_branch_from_zero_changes_nothing_and_learns() -> None:
    scheme = LinearScheme(weight_bits=4, act_bits=8, low_rank=LowRankSpec(rank=2, input="quantized", start="zero"))
    simulated, plain = layer(scheme), layer(LinearScheme(weight_bits=4, act_bits=8))
    simulated.set_branch(normal(2, K), torch.zeros(N, 2))
    x = normal(20, K, seed=3)
    assert torch.equal(simulated(x), plain(x))
    simulated(x).square().sum().backward()
    assert bool(simulated.low_rank_up.grad.any())


def test_weights_are_made_anew_when_something_may_have_been_learned() -> None:
    simulated, x = layer(LinearScheme(weight_bits=4, act_bits=8, weight_clip="learned")), normal(5, K)
    with torch.no_grad():
        before = simulated(x)
    simulated(x).sum().backward()
    with torch.no_grad():
        simulated.clip_logit -= 4
        assert not torch.equal(simulated(x), before)


@pytest.mark.parametrize("kind", SCHEMES)
def test_gradients_pass_to_the_input(kind: str) -> None:
    scheme = LinearScheme(**{"weight_bits": 8, "act_bits": 8} | SCHEMES[kind])
    simulated = layer(scheme)
    if scheme.rounding == "adaround":
        simulated.round_logit.data = 20 * simulated.round_logit.data.sign()
    linear, x = packed(simulated), normal(4, K, seed=3).requires_grad_()
    linear(x).sum().backward()
    expected = linear.dequantize().weight.sum(0).expand(4, K)
    assert torch.allclose(x.grad, expected, rtol=1e-3, atol=1e-3)
