"""The native code gives the bits of the definition, on every instruction set and kind of row, or says why it is not used."""

import pytest
import torch
from awkward import rows
from definition import defined
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_linear
from torch import Tensor

from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.packing import pack
from s2q.numerics.quantizer import grid, quantize
from s2q.runtime import integer, reference
from s2q.runtime.backend import Problem
from s2q.runtime.native import backend, library, sharing
from s2q.runtime.native.layout import plan_of
from s2q.runtime.reference import ActFormat, InputTransform
from s2q.runtime.scratch import scratch

SETS = library.instruction_sets()
needs_native = pytest.mark.skipif(not SETS, reason="s2q was installed without a C compiler")
kinds = st.sampled_from([torch.float32, torch.bfloat16])
# The instruction set is the test's, not the example's.
many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NATIVE = backend.NativeBackend()


def asked(x: Tensor, acts: ActFormat, outputs: int = 1, **more) -> Problem:
    return Problem(x.device, x.dtype, *x.shape, outputs, acts, 4, **more)


@needs_native
@many
@given(
    shape=st.tuples(st.integers(1, 19), st.sampled_from([2, 6, 8, 24, 66, 130, 160])),
    kind=st.sampled_from(["normal", "zeros", "ties", "outlier", "tiny", "denormal", "huge", "positive"]),
    dtype=kinds,
    bits=st.integers(4, 8),
    symmetric=st.booleans(),
    groups=st.sampled_from([1, 2]),
    clip=st.sampled_from([None, 0.98201376, 0.4]),
    channel=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_rows_are_quantized_as_defined(
    each_set, shape, kind, dtype, bits, symmetric, groups, clip, channel, seed
) -> None:
    x = rows(shape, kind, dtype, seed)
    factor = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) + 0.5 if channel else None
    factor_of = InputTransform(scale=factor, clip=None if clip is None else torch.tensor([clip]))
    values = reference.transform_input(x, factor_of)
    scale, zero = grid(values, bits, symmetric, 1.0 if clip is None else factor_of.clip, groups)
    expected = quantize(values, scale, bits, zero)
    problem = asked(x, ActFormat(bits, symmetric, groups))
    made = backend.quantize_rows(x, factor_of, problem)
    assert torch.equal(made.scale, scale)
    assert torch.equal(made.codes, expected)
    assert made.zero is None if symmetric else torch.equal(made.zero, zero)
    tiled = NATIVE.quantize_input(x, factor_of, problem)
    again = NATIVE.natural(tiled, problem)
    assert torch.equal(again.scale, scale)
    assert torch.equal(again.codes, expected)
    assert again.zero is None if symmetric else torch.equal(again.zero, zero)
    # Built from the natural order, it is the same memory, sums of the groups with it.
    other = backend._tiled(again, problem)
    plan = plan_of(problem)
    sums = 4 * len(x) * groups if plan.layout == library.TILES else 0
    for start, stop in ((0, plan.zero), (plan.sums, plan.sums + sums), (plan.codes, plan.end)):
        assert torch.equal(other.memory[start:stop], tiled.memory[start:stop])


@needs_native
@many
@given(
    count=st.integers(1, 19),
    columns=st.sampled_from([1, 7, 12, 30, 64, 160, 224, 288]),
    channel=st.booleans(),
    dtype=kinds,
    seed=st.integers(0, 9999),
)
def test_rows_are_transformed_as_defined_and_none_depends_on_its_neighbours(
    each_set, count, columns, channel, dtype, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = rows((count, columns), "normal", dtype, seed)
    left, right = (random_orthogonal(n, generator) for n in kronecker_factors(columns))
    transform = InputTransform(torch.rand(columns, generator=generator) + 0.5 if channel else None, left, right)
    problem = asked(x, ActFormat(6), kronecker=kronecker_factors(columns), low_rank=1)
    made = NATIVE.quantize_input(x, transform, problem)
    scaled = x.double() if transform.scale is None else x.double() * transform.scale
    exact = scaled @ torch.kron(left.double(), right.double())
    torch.testing.assert_close(made.values, exact.float(), rtol=1e-5, atol=2e-6)
    scale, _ = grid(made.values, 6, True)
    assert torch.equal(NATIVE.natural(made, problem).codes, quantize(made.values, scale, 6))
    alone = NATIVE.quantize_input(x[-1:], transform, problem._replace(rows=1))
    assert torch.equal(alone.values[0], made.values[-1])


@needs_native
@many
@given(
    count=st.integers(1, 9),
    shape=st.sampled_from([(3, 1), (6, 2), (12, 4), (40, 8), (160, 32), (192, 64), (256, 128), (640, 128), (512, 512)]),
    kind=st.sampled_from(["normal", "zeros", "outlier", "denormal", "huge"]),
    channel=st.booleans(),
    dtype=kinds,
    seed=st.integers(0, 9999),
)
def test_hadamard_blocks_are_the_definitions_bit_for_bit(each_set, count, shape, kind, channel, dtype, seed) -> None:
    columns, block = shape
    x = rows((count, columns), kind, dtype, seed)
    scale = torch.randn(columns, generator=torch.Generator().manual_seed(seed)) if channel else None
    transform = InputTransform(scale, hadamard=block)
    made = NATIVE.quantize_input(x, transform, asked(x, ActFormat(6), hadamard=block, low_rank=1))
    assert torch.equal(made.values, reference.transform_input(x, transform))


@needs_native
@many
@given(
    weight_bits=st.sampled_from([2, 3, 4, 4, 4, 5, 8]),
    act_bits=st.sampled_from([4, 6, 7, 8]),
    count=st.sampled_from([1, 5, 8, 9, 15, 33]),
    columns=st.sampled_from([1, 7, 12, 40, 64, 100, 160, 256]),
    outputs=st.sampled_from([1, 3, 31, 32, 40, 70]),
    group_size=st.sampled_from([None, 1, 8, 24, 64]),
    groups_of=st.sampled_from(["both", "weight", "tokens"]),
    dtype=kinds,
    bias=st.booleans(),
    symmetric_weights=st.booleans(),
    symmetric_acts=st.booleans(),
    input_range=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_products_are_the_definitions_bit_for_bit(
    each_set, weight_bits, act_bits, count, columns, outputs, group_size, groups_of, dtype, seed, **scheme
) -> None:
    scheme["group_size"] = None if groups_of == "tokens" else group_size
    scheme["act_group_size"] = None if groups_of == "weight" else group_size
    linear = make_linear(outputs, columns, weight_bits, act_bits, **scheme)
    x = rows((count, columns), "normal", dtype, seed)
    assert torch.equal(linear(x), defined(linear, x))


@needs_native
@many
@given(
    count=st.sampled_from([1, 7, 17, 33]),
    columns=st.sampled_from([12, 64, 160]),
    outputs=st.sampled_from([1, 31, 32, 70]),
    group_size=st.sampled_from([None, 4, 32]),
    rank=st.sampled_from([0, 2]),
    size=st.sampled_from([1e-30, 0.01, 1.0, 20.0, 1e12]),
    seed=st.integers(0, 9999),
)
def test_gelu_is_the_definitions_within_float32_and_the_same_everywhere(
    each_set, count, columns, outputs, group_size, rank, size, seed
) -> None:
    grouped = None if columns % (group_size or 1) else group_size
    linear = make_linear(outputs, columns, 4, 6, group_size=grouped, act_group_size=grouped, low_rank=rank)
    x = rows((count, columns), "normal", torch.float32, seed) * size
    y, made = linear(x), linear(x, gelu_tanh=True)
    # Where nothing is left of it, torch's 1 + tanh is off by what float32 holds of 1, times the output.
    torch.testing.assert_close(made, reference.gelu_tanh(y), rtol=4e-7, atol=1e-6)
    exact = reference.gelu_tanh(y.double()).float()
    torch.testing.assert_close(made[y > 0], exact[y > 0], rtol=5e-7, atol=0)
    try:
        library.use(SETS[0])
        assert torch.equal(linear(x, gelu_tanh=True), made)
    finally:
        library.use(each_set)


@needs_native
def test_codes_in_natural_order_are_multiplied_too(each_set: str) -> None:
    for symmetric_acts, act_bits in ((True, 6), (False, 6), (False, 8)):
        linear = make_linear(40, 96, 4, act_bits, symmetric_acts=symmetric_acts, act_group_size=16)
        x = rows((13, 96), "normal", torch.float32, 0)
        problem = linear.problem(x)
        inputs = reference.quantize_input(x, linear.input_transform(), problem.acts)
        y = NATIVE.multiply(inputs, linear.packed_weight(), linear.bias, None, problem)
        assert torch.equal(y, linear(x))


@needs_native
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize(("codes", "zeros"), [(-1, None), (-1, 0), (0, -1)])
def test_the_largest_sums_are_exact(
    each_set: str, weight_bits: int, group_size: int | None, codes: int, zeros: int | None
) -> None:
    linear = make_linear(40, 512, weight_bits, 8, symmetric_weights=zeros is None, act_group_size=group_size)
    linear.weight_packed.data.fill_(codes)  # with all bits set every code is the largest, with none the smallest
    if zeros is not None:
        linear.weight_zero_point.data.fill_(zeros)
    x = torch.ones(9, 512)
    x[::2] = -1
    x[:, 0] = 1
    assert torch.equal(linear(x), defined(linear, x))


@needs_native
def test_a_row_with_nan_stays_nan_and_spares_the_others(each_set: str) -> None:
    x = torch.randn(3, 16)
    x[1, 5] = torch.nan
    linear = make_linear(24, 16, 4, 6)
    assert torch.equal(linear(x, gelu_tanh=True).isnan(), linear(x).isnan())
    y = linear(x)
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == [False, True, False]


@needs_native
@given(st.integers(1, 40), st.sampled_from([8, 16, 72, 264]), st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_nibbles_are_unpacked_as_defined(outputs: int, columns: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (outputs, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    out = torch.empty(outputs, columns, dtype=torch.int8)
    assert torch.equal(library.unpack_nibbles(pack(codes, 4), out), codes)


@needs_native
@many
@given(st.tuples(st.integers(1, 9), st.integers(1, 70)), kinds, st.booleans(), st.booleans(), st.integers(0, 9999))
def test_sums_are_scaled_as_defined(shape, dtype, with_bias, asymmetric, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    sums = torch.randint(-(1 << 22), 1 << 22, shape, generator=generator, dtype=torch.int32)
    scale, weight_scale = torch.rand(shape[0], 1, generator=generator), torch.rand(shape[1], 1, generator=generator)
    bias = torch.randn(shape[1], generator=generator) if with_bias else None
    zero = torch.randint(-32, 32, (shape[0], 1), generator=generator, dtype=torch.int32) if asymmetric else None
    weight_sum = torch.randint(-999, 999, (shape[1],), generator=generator, dtype=torch.int32) if asymmetric else None
    out = torch.empty(shape, dtype=dtype)
    library.scale_sums(sums, scale, weight_scale, zero, weight_sum, bias, out)
    total = sums if zero is None else sums - zero * weight_sum
    expected = total.float() * scale * weight_scale.mT
    assert torch.equal(out, (expected if bias is None else expected + bias).to(dtype))


@needs_native
@pytest.mark.parametrize("outputs", [24, 400])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("torchs", [True, False])
def test_any_number_of_threads_of_torchs_or_others_gives_the_same_bits(
    torchs: bool, threads: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = make_linear(outputs, 64, 4, 6, transform=True, act_group_size=16)
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    expected = linear(x)
    monkeypatch.setattr(sharing, "WORTH_A_THREAD", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if not torchs:
        monkeypatch.setattr(sharing, "team", lambda: None)
    elif sharing.team():
        monkeypatch.delattr(sharing, "_pool")
    assert torch.equal(linear(x), expected)


@needs_native
@pytest.mark.parametrize("on_codes", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_branch_in_many_chunks_of_rows_is_one_result(
    symmetric: bool, group_size: int | None, on_codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = {"symmetric_acts": symmetric, "act_group_size": group_size, "low_rank_on_codes": on_codes}
    linear = make_linear(24, 64, 4, 6, low_rank=2, **scheme)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    # The branch is a float product of torch's, whose order of sums depends on the number of rows on some CPUs.
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    expected = defined(linear, x)
    torch.testing.assert_close(linear(x), expected, **tolerance)
    monkeypatch.setattr(backend, "MOST_BRANCH", 1)
    torch.testing.assert_close(linear(x), expected, **tolerance)
    monkeypatch.setenv("S2Q_BACKEND", "torch")
    torch.testing.assert_close(linear(x), expected, **tolerance)


@needs_native
@pytest.mark.parametrize("symmetric", [True, False])
def test_torchs_own_product_with_native_code_around_it_is_the_definition(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = make_linear(24, 64, 4, 6, symmetric_acts=symmetric)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(integer, "LEAST_ROWS", 7)
    monkeypatch.setattr(integer, "MOST_SUMS", 1)
    problem, torchs = linear.problem(x), integer.TorchBackend()
    inputs = torchs.quantize_input(x, linear.input_transform(), problem)
    assert inputs.backend is None
    y = torchs.multiply(inputs, linear.packed_weight(), linear.bias, None, problem)
    assert torch.equal(y, defined(linear, x))


def test_other_devices_and_dtypes_are_declined_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: "not built")
    assert library.why_not(torch.device("cpu"), torch.float32) == "not built"
    monkeypatch.undo()
    if SETS:
        assert "meta" in library.why_not(torch.device("meta"), torch.float32)
        assert "float16" in library.why_not(torch.device("cpu"), torch.float16)


@needs_native
def test_an_instruction_set_that_is_not_here_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there are baseline"):
        library.use("AVX-9000")
    monkeypatch.setenv("S2Q_INSTRUCTION_SET", "AVX-9000")
    with pytest.raises(ValueError, match="S2Q_INSTRUCTION_SET is 'AVX-9000': this machine has baseline"):
        library.load.__wrapped__()
    monkeypatch.setenv("S2Q_INSTRUCTION_SET", "baseline")
    try:
        library.load.__wrapped__()
        assert library.instruction_set() == "baseline"
    finally:
        library.use(None)


def test_a_buffer_is_used_again_grows_and_outlives_inference_mode() -> None:
    with torch.inference_mode():
        first = scratch("test", (4, 4), torch.int32)
    assert scratch("test", (2, 3), torch.int32).data_ptr() == first.data_ptr()
    assert scratch("test", (8, 8), torch.int32).shape == (8, 8)
    scratch("test", (2,), torch.int32).zero_()
    assert scratch("other", (2,), torch.int32).data_ptr() != scratch("test", (2,), torch.int32).data_ptr()
