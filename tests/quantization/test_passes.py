"""The passes of learning are those of plain torch, on every instruction set of this machine."""

from collections.abc import Callable

import pytest
import torch
from awkward import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2q.quantization.passes import Grid, Mixing, prepare
from s2q.runtime.native import library, sharing

SETS = library.instruction_sets()
pytestmark = pytest.mark.skipif(not SETS, reason="s2q was installed without a C compiler")
# The instruction set is the test's, not the example's.
some = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ["normal", "zeros", "ties", "outlier", "tiny", "denormal", "positive"]


def both_ways(
    of: Callable[..., Tensor], inputs: tuple[Tensor, ...], seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients, natively and in plain torch."""
    found = []
    for backend in ("native", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("S2Q_BACKEND", backend)
            leaves = [tensor.clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
            values = of(*leaves)
            above = rows(tuple(values.flatten(0, -2).shape), seed=seed + 1).view(values.shape)
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            found.append([values.detach(), *torch.autograd.grad(values, asked, above)])
    assert len(found[0]) == len(found[1])
    return found[0], found[1]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        # Sums of up to some thousand terms in another order.
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@some
@given(
    st.integers(0, 9999),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(KINDS),
    st.sampled_from([(3, 1), (3, 5), (2, 16), (5, 33), (4, 48), (1, 160)]),
    st.sampled_from(["one", "row", "fixed"]),
    st.booleans(),
)
def test_rounding_has_the_values_of_plain_torch_and_its_gradients(
    each_set: str,
    seed: int,
    bits: int,
    symmetric: bool,
    kind: str,
    shape: tuple[int, int],
    clipping: str,
    grouped: bool,
) -> None:
    groups = 3 if grouped and shape[1] % 3 == 0 else 1
    x = rows(shape, kind, seed=seed).requires_grad_()
    clip = torch.full((1,) if clipping == "one" else (shape[0], 1), 0.8).requires_grad_(clipping != "fixed")
    ours, theirs = both_ways(lambda x, clip: prepare(x, Mixing(), Grid(bits, symmetric, groups), clip), (x, clip), seed)
    assert torch.equal(ours[0], theirs[0])
    if kind != "denormal":  # plain torch takes neighbours of the end for the end, among numbers this small
        assert_close(ours, theirs)


def test_a_fixed_factor_is_a_number_too(each_set: str) -> None:
    ours, theirs = both_ways(lambda x: prepare(x, Mixing(), Grid(4, False), 0.9), (rows((4, 24)).requires_grad_(),))
    assert torch.equal(ours[0], theirs[0])
    assert_close(ours, theirs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_equal_ends_share_the_gradient_of_the_range(each_set: str, symmetric: bool) -> None:
    x = torch.tensor([[3.0, -3.0, 3.0, 0.4, -3.0, 0.0, 1.7, -2.2], [-5.0, -1.0, -5.0, -0.3, -2.0, -2.5, -4.0, -1.1]])
    ours, theirs = both_ways(lambda x: prepare(x, Mixing(), Grid(3, symmetric)), (x.requires_grad_(),))
    assert_close(ours, theirs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_value_that_is_no_number_spoils_its_own_group_alone(each_set: str, symmetric: bool) -> None:
    x = rows((2, 24))
    x[0, 3] = float("nan")
    values = prepare(x, Mixing(), Grid(4, symmetric, groups=2))
    assert values[0, :12].isnan().all()
    assert values[0, 12:].isfinite().all()
    assert values[1].isfinite().all()


@some
@given(st.integers(0, 9999), st.sampled_from([1, 2, 8, 16, 32, 64, 128, 512]), st.sampled_from(KINDS))
def test_hadamard_blocks_have_the_bits_of_plain_torch(each_set: str, seed: int, block: int, kind: str) -> None:
    x = rows((6, 3 * block), kind, seed=seed).view(2, 3, 3 * block).requires_grad_()
    for one, other in zip(*both_ways(lambda x: prepare(x, Mixing(block=block)), (x,), seed), strict=True):
        assert torch.equal(one, other)


@some
@given(
    st.integers(0, 9999),
    st.sampled_from([(1, 1), (2, 3), (4, 4), (5, 16), (10, 16), (9, 20), (16, 33), (20, 32), (40, 48)]),
    st.sampled_from([1, 2, 7, 30, 700]),
    st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_kronecker_transforms_are_those_of_plain_torch(
    each_set: str, seed: int, factors: tuple[int, int], count: int, learned: tuple[bool, bool]
) -> None:
    n1, n2 = factors
    x = rows((count, n1 * n2), seed=seed).requires_grad_(learned[0])
    left, right = (rows((n, n), seed=seed + n).requires_grad_(learned[1]) for n in factors)
    assert_close(*both_ways(lambda x, *pair: prepare(x, Mixing(None, False, *pair)), (x, left, right), seed))


@some
@given(st.integers(0, 9999), st.sampled_from([(1, 1), (7, 5), (40, 64), (3, 130)]), st.booleans())
def test_scales_of_channels_are_learned_as_in_plain_torch(
    each_set: str, seed: int, shape: tuple[int, int], learned: bool
) -> None:
    x, scale = rows(shape, seed=seed), (rows((1, shape[1]), seed=seed + 2)[0].abs() + 0.1).requires_grad_()
    assert_close(*both_ways(lambda x, scale: prepare(x, Mixing(scale, divide=True)), (x, scale), seed))
    assert_close(
        *both_ways(lambda x, scale: prepare(x, Mixing(scale)), (x.view(1, *shape).requires_grad_(learned), scale), seed)
    )


@some
@given(
    st.integers(0, 9999),
    st.sampled_from([(6, 8, 16), (5, 16, 8)]),
    st.booleans(),
    st.sampled_from([{"x"}, {"scale"}, {"left", "right"}, {"clip"}, {"x", "scale", "left", "right", "clip"}]),
)
def test_all_at_once_is_one_after_the_other(
    each_set: str, seed: int, sizes: tuple[int, int, int], divide: bool, learned: set[str]
) -> None:
    n1, n2, block = sizes
    given = {"x": rows((9, n1 * n2), seed=seed), "scale": rows((1, n1 * n2), seed=seed + 1)[0].abs() + 0.5}
    given |= {
        "left": rows((n1, n1), seed=seed + 2),
        "right": rows((n2, n2), seed=seed + 3),
        "clip": torch.full((9, 1), 0.9),
    }
    given = {name: tensor.requires_grad_(name in learned) for name, tensor in given.items()}

    def of(x: Tensor, scale: Tensor, left: Tensor, right: Tensor, clip: Tensor) -> Tensor:
        # A fine grid: the last bits of the transform, which differ, seldom reach another code.
        return prepare(x, Mixing(scale, divide, left, right, block), Grid(8, False), clip)

    ours, theirs = both_ways(of, tuple(given.values()), seed)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= 0.02 * float(other.norm())


def test_nothing_to_do_gives_the_same_values_and_gradient(each_set: str) -> None:
    x = rows((3, 8)).requires_grad_()
    ours, _ = both_ways(lambda x: prepare(x, Mixing()), (x,))
    assert torch.equal(ours[0], x)


def test_the_number_of_threads_changes_no_bit(each_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "WORTH_A_THREAD", 1)
    x, clip = rows((1500, 48)).requires_grad_(), torch.full((1,), 0.9, requires_grad=True)
    left, right, scale = (rows(shape, seed=1).requires_grad_() for shape in ((6, 6), (8, 8), (1, 48)))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            values = prepare(x, Mixing(scale[0], False, left, right, 16), Grid(4, False), clip)
            found.append(
                [values, *torch.autograd.grad(values, (x, clip, left, right, scale), rows((1500, 48), seed=2))]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_other_kinds_of_tensors_are_left_to_torch() -> None:
    x = rows((4, 32)).double().requires_grad_()
    values = prepare(x, Mixing(block=8), Grid(4, True))
    assert values.dtype == torch.float64
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.dtype == torch.float64
