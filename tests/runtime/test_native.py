"""The native code gives the bits of the definition, on every kind of row, or says why it is not used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_linear
from torch import Tensor

from s2q.numerics.packing import pack
from s2q.numerics.quantizer import grid, quantize
from s2q.runtime import integer
from s2q.runtime.native import library
from s2q.runtime.scratch import scratch

BUILT = library.instruction_set() is not None
needs_native = pytest.mark.skipif(not BUILT, reason="s2q was installed without a C compiler")
kinds = st.sampled_from([torch.float32, torch.bfloat16])
many = settings(max_examples=150, deadline=None)


def rows(shape: tuple[int, int], kind: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Tokens of a kind that has gone wrong before, or could."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        x[::2] = 0
    elif kind == "ties":  # halves of a step, which round to even
        x = (x * 16).round() / 2
    elif kind == "outlier":
        x[:, 0] *= 1e4
    elif kind == "tiny":
        x *= 1e-30
    elif kind == "positive":
        x = x.abs()
    return x.to(dtype)


def in_halves(codes: Tensor) -> Tensor:
    return torch.cat([codes[:, 0::2], codes[:, 1::2]], dim=1)


@needs_native
@many
@given(
    shape=st.tuples(st.integers(1, 9), st.sampled_from([2, 6, 8, 24, 66, 130])),
    kind=st.sampled_from(["normal", "zeros", "ties", "outlier", "tiny", "positive"]),
    dtype=kinds,
    bits=st.integers(4, 8),
    symmetric=st.booleans(),
    groups=st.sampled_from([1, 2]),
    halves=st.booleans(),
    clip=st.sampled_from([1.0, 0.98201376, 0.4]),
    channel=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_rows_are_quantized_as_defined(
    shape, kind, dtype, bits, symmetric, groups, halves, clip, channel, seed
) -> None:
    x = rows(shape, kind, dtype, seed)
    factor = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) + 0.5 if channel else None
    values = x.float() if factor is None else x.float() * factor
    scale, zero = grid(values, bits, symmetric, torch.tensor([clip]), groups)
    expected = quantize(values, scale, bits, zero)
    halves = halves and groups == 1
    clip = float(torch.tensor(clip))
    codes, steps, offsets = library.quantize_rows(x, factor, clip, bits, symmetric, groups, halves)
    assert torch.equal(steps, scale)
    assert torch.equal(codes, in_halves(expected) if halves else expected)
    assert offsets is None if symmetric else torch.equal(offsets, zero)


@needs_native
def test_a_row_with_nan_stays_nan_and_spares_the_others() -> None:
    x = torch.randn(3, 16)
    x[1, 5] = torch.nan
    _, scale, _ = library.quantize_rows(x, None, 1.0, 6, True, 1, False)
    assert scale.isnan().flatten().tolist() == [False, True, False]


@needs_native
@given(st.integers(1, 40), st.sampled_from([8, 16, 72, 264]), st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_nibbles_are_unpacked_as_defined(outputs: int, columns: int, seed: int) -> None:
    codes = torch.randint(-8, 8, (outputs, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    out = torch.empty(outputs, columns, dtype=torch.int8)
    assert torch.equal(library.unpack_halves(pack(codes, 4), out), in_halves(codes))


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
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "WORTH_A_THREAD", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    scale, _ = grid(x, 6, True)
    codes, steps, _ = library.quantize_rows(x, None, 1.0, 6, True, 1, False)
    assert torch.equal(steps, scale)
    assert torch.equal(codes, quantize(x, scale, 6))


@needs_native
@pytest.mark.parametrize("low_rank", [0, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_chunks_of_rows_are_one_result(low_rank: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = make_linear(24, 64, 4, 6, low_rank=low_rank, symmetric_acts=symmetric)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    whole = linear(x)
    monkeypatch.setattr(integer, "LEAST_ROWS", 7)
    monkeypatch.setattr(integer, "MOST_SUMS", 1)
    # The branch is a float product of torch's, whose order of sums depends on the number of rows on some CPUs.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if low_rank else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(linear(x), whole, **tolerance)
    monkeypatch.setenv("S2Q_BACKEND", "torch")
    torch.testing.assert_close(linear(x), whole, **tolerance)


def test_what_is_demanded_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: "not built")
    cpu = torch.device("cpu")
    assert library.why_not(cpu, torch.float32) == "not built"
    monkeypatch.setenv("S2Q_BACKEND", "native")
    with pytest.raises(RuntimeError, match="not built"):
        library.why_not(cpu, torch.float32)
    monkeypatch.setenv("S2Q_BACKEND", "fast")
    with pytest.raises(ValueError, match="'fast': allowed are native, torch and triton"):
        library.why_not(cpu, torch.float32)


@needs_native
def test_other_devices_and_dtypes_are_declined_with_the_reason() -> None:
    assert "meta" in library.why_not(torch.device("meta"), torch.float32)
    assert "float16" in library.why_not(torch.device("cpu"), torch.float16)


def test_a_buffer_is_used_again_grows_and_outlives_inference_mode() -> None:
    with torch.inference_mode():
        first = scratch("test", (4, 4), torch.int32)
    assert scratch("test", (2, 3), torch.int32).data_ptr() == first.data_ptr()
    assert scratch("test", (8, 8), torch.int32).shape == (8, 8)
    scratch("test", (2,), torch.int32).zero_()
    assert scratch("other", (2,), torch.int32).data_ptr() != scratch("test", (2,), torch.int32).data_ptr()
