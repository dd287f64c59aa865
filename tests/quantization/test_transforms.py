"""A transform changes what is rounded and never what is computed."""

import pytest
import torch
from torch import nn

from s2q.numerics.hadamard import hadamard_blocks
from s2q.quantization.freeze import fold, freeze, frozen_transform
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.schemes import scheme_spec
from s2q.quantization.transforms import SharedTransform
from s2q.recipe import LinearScheme, TransformSpec
from s2q.runtime.linear import QuantLinear
from s2q.runtime.reference import transform_input

K, N = 24, 10
SPECS = {
    "both": TransformSpec(),
    "scale": TransformSpec(rotation="none"),
    "kronecker": TransformSpec(channel_scale=False),
    "hadamard": TransformSpec(rotation="hadamard"),
    "blocks": TransformSpec(rotation="hadamard_blocks"),
    "blocks alone": TransformSpec(channel_scale=False, rotation="hadamard_blocks", block=2),
    "signs alone": TransformSpec(channel_scale=False, rotation="hadamard"),
    "none": None,
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheme(kind: str = "both", **changes) -> LinearScheme:
    base = {"weight_bits": 4, "act_bits": 6, "transform": SPECS[kind], "weight_clip": "learned", "act_clip": "learned"}
    return LinearScheme(**(base | changes))


def learned(chosen: LinearScheme, seed: int = 0) -> SharedTransform:
    """A transform that training has moved away from its start."""
    made = SharedTransform(K, chosen, normal(K).abs() + 0.1, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=index + 2))
    return made


def linear() -> nn.Linear:
    made = nn.Linear(K, N)
    made.weight.data, made.bias.data = normal(N, K, seed=7), normal(N, seed=8)
    return made.requires_grad_(False)


@pytest.mark.parametrize("kind", SPECS)
def test_transform_of_the_weight_undoes_that_of_the_input(kind: str) -> None:
    inputs, x, weight = learned(scheme(kind)), normal(5, K, seed=3), normal(N, K, seed=7)
    transformed = transform_input(x, inputs.input_transform()) @ inputs.on_weight(weight).mT
    assert torch.allclose(transformed, x @ weight.mT, atol=1e-4)


@pytest.mark.parametrize("kind", SPECS)
def test_folding_makes_up_for_the_transform_as_stored(kind: str) -> None:
    simulated = SimulatedLinear(linear(), scheme(kind), learned(scheme(kind)))
    transform, x = frozen_transform(simulated), normal(5, K, seed=3)
    double = transform.with_tensors(None if t is None else t.double() for t in transform.tensors())
    values = x.double() if double.scale is None else x.double() * double.scale
    if double.left is not None:
        values = values @ torch.kron(double.left, double.right)
    if double.hadamard:
        values = hadamard_blocks(values, double.hadamard)
    folded = fold(simulated.weight, transform)
    assert folded.dtype == torch.float64
    assert torch.allclose(values @ folded.mT, x.double() @ simulated.weight.double().mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("act_bits", [4, 6, 8, None])
@pytest.mark.parametrize("kind", SPECS)
def test_what_is_packed_computes_what_was_simulated(kind: str, act_bits: int | None) -> None:
    chosen = scheme(kind, act_bits=act_bits)
    simulated = SimulatedLinear(linear(), chosen, learned(chosen))
    tensors = freeze(simulated, None)

    packed = QuantLinear(K, N, True, scheme_spec(chosen, K))
    assert set(tensors) == set(packed.tensor_names)
    for name, tensor in tensors.items():
        getattr(packed, name).data = tensor
    packed.bias.data = simulated.bias
    x = normal(20, K, seed=3)
    # The weight is folded in float64 and simulated in float32: a code may differ where a value lies on a tie.
    with torch.no_grad():
        assert (packed(x) - simulated(x)).norm() < 1e-3 * simulated(x).norm()


@pytest.mark.parametrize("bits", range(2, 9))
def test_frozen_codes_fit_the_grid_and_use_it(bits: int) -> None:
    from s2q.numerics.packing import unpack
    from s2q.numerics.quantizer import integer_range

    chosen = scheme(weight_bits=bits)
    tensors = freeze(SimulatedLinear(linear(), chosen, learned(chosen)), None)
    codes = unpack(tensors["weight_packed"], bits, K)
    smallest, largest = integer_range(bits)
    assert smallest <= int(codes.min()) < 0 < int(codes.max()) <= largest
    assert bool((codes.short().abs().amax(1) >= largest).all()), "each row reaches the end of the grid"


def test_seed_decides_the_rotation() -> None:
    one, again, other = (learned(scheme(), seed).input_transform().left for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_gradients_reach_scale_rotation_and_both_clips() -> None:
    chosen = scheme()
    inputs = SharedTransform(K, chosen, normal(K).abs() + 0.1, torch.Generator().manual_seed(0))
    layer = SimulatedLinear(linear(), chosen, inputs)
    layer(normal(30, K, seed=3)).square().sum().backward()
    for name, parameter in [*inputs.named_parameters(), ("weight clip", layer.clip_logit)]:
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_parameters_are_split_between_the_two_learning_rates() -> None:
    inputs = learned(scheme())
    split = [*inputs.transform_parameters(), *inputs.clip_parameters()]
    assert sorted(map(id, split)) == sorted(map(id, inputs.parameters()))
    assert len(inputs.clip_parameters()) == 1


@torch.no_grad()
def test_what_is_remembered_is_forgotten_when_parameters_change() -> None:
    inputs, x = learned(scheme()), normal(5, K, seed=3)
    before, weight = inputs(x), inputs.on_weight(normal(N, K))
    assert inputs(x) is before, "done once for all linears that share the input"
    for parameter in inputs.parameters():
        parameter.add_(0.1)
    inputs.forget()
    assert not torch.equal(inputs(x), before)
    assert not torch.equal(inputs.on_weight(normal(N, K)), weight)
