"""Tokens are transformed to float32's accuracy, and rounded to the bits of the definition."""

import pytest
import torch
from awkward import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.quantizer import quantize
from s2q.runtime.gpu import backend
from s2q.runtime.reference import ActFormat, InputTransform, QuantizedInput, input_grid, transform_input

# Input widths of CogVideoX-2B and -5B, Wan-1.3B and -14B, HunyuanVideo.
WIDTHS = (1920, 7680, 3072, 12288, 1536, 8960, 5120, 13824, 15360)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def on(device: str, transform: InputTransform) -> InputTransform:
    return transform.with_tensors(None if tensor is None else tensor.to(device) for tensor in transform.tensors())


def quantized(device: str, x: Tensor, transform: InputTransform, acts: ActFormat, keep: bool = True) -> QuantizedInput:
    """What the kernels make of `x`, on the CPU."""
    there = x.to(device), on(device, transform), acts
    assert backend.why_not_quantize(*there) is None
    return QuantizedInput(*(t.cpu() if isinstance(t, Tensor) else t for t in backend.quantize_input(*there, keep)))


def check_rounding(made: QuantizedInput, values: Tensor, transform: InputTransform, acts: ActFormat) -> None:
    """Steps, zero points and codes are those that the definition gives to `values`."""
    scale, zero = input_grid(values, transform, acts)
    assert torch.equal(made.scale, scale)
    assert made.zero is None if zero is None else torch.equal(made.zero, zero)
    assert torch.equal(made.codes, quantize(values, scale, acts.bits, zero))


def kronecker(width: int, **others: Tensor) -> InputTransform:
    generator = torch.Generator().manual_seed(width)
    left, right = (random_orthogonal(n, generator) * 1.2 for n in kronecker_factors(width))
    return InputTransform(scale=torch.rand(width, generator=generator) + 0.5, left=left, right=right, **others)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.sampled_from([6, 8, 24, 66, 130, 384])),
    kind=st.sampled_from(["normal", "zeros", "ties", "outlier", "tiny", "positive"]),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(4, 8),
    symmetric=st.booleans(),
    groups=st.sampled_from([1, 2, 3, 6]),
    clip=st.sampled_from([None, 0.98201376, 0.4]),
    channel=st.booleans(),
    limits=st.sampled_from([None, (-1.5, 2.0), (0.5, 3.0), (-3.0, -1.0)]),
    keep=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_rows_are_rounded_as_defined(
    device, shape, kind, dtype, bits, symmetric, groups, clip, channel, limits, keep, seed
) -> None:
    x = rows(shape, kind, dtype, seed)
    factor = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) + 0.5 if channel else None
    clip = None if clip is None else torch.tensor([clip])
    limits = None if limits is None else torch.tensor(limits)
    transform = InputTransform(scale=factor, clip=clip, range=limits)
    acts = ActFormat(bits, symmetric, 1 if limits is not None or shape[1] % groups else groups)
    made, values = quantized(device, x, transform, acts, keep), transform_input(x, transform)
    assert torch.equal(made.values, values) if keep else made.values is None
    check_rounding(made, values, transform, acts)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_released_width_is_declined_or_transformed_worse_than_by_torch(device: str, width: int) -> None:
    transform, acts = kronecker(width, clip=torch.tensor([0.9])), ActFormat(6, width % 9 == 0)
    x = rows((2, width), dtype=torch.bfloat16)
    made = quantized(device, x, transform, acts)
    exact = transform_input_in_float64(x, transform)
    plain = transform_input(x, transform)
    # The floor is a few units in the last place, for the tensor cores' own way of adding.
    assert (made.values - exact).norm() <= 2 * (plain - exact).norm() + 3e-7 * exact.norm()
    check_rounding(made, made.values, transform, acts)


def transform_input_in_float64(x: Tensor, transform: InputTransform) -> Tensor:
    n1, n2 = transform.left.shape[0], transform.right.shape[0]
    folded = (x.double() * transform.scale.double()).view(-1, n1, n2)
    return (transform.left.double().mT @ folded @ transform.right.double()).view(x.shape)


@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 4),
    width=st.sampled_from([1, 7, 12, 31, 96, 160, 320]),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(4, 8),
    symmetric=st.booleans(),
    grouped=st.booleans(),
    limits=st.booleans(),
)
def test_any_factors_are_transformed_and_rounded(
    device, tokens, width, dtype, bits, symmetric, grouped, limits
) -> None:
    transform = kronecker(width, range=torch.tensor([-1.0, 2.5]) if limits else None)
    groups = 4 if grouped and not limits and width % 4 == 0 else 1
    x, acts = rows((tokens, width), dtype=dtype), ActFormat(bits, symmetric, groups)
    made = quantized(device, x, transform, acts)
    torch.testing.assert_close(made.values, transform_input(x, transform), rtol=1e-5, atol=1e-5)
    check_rounding(made, made.values, transform, acts)
    again = quantized(device, x, transform, acts, keep=False)
    assert again.values is None
    assert torch.equal(again.codes, made.codes)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 3),
    width_block_groups=st.sampled_from(
        [(64, 16, 1), (96, 32, 3), (96, 32, 1), (256, 128, 4), (256, 128, 8), (640, 128, 10), (80, 16, 2), (48, 2, 1),
         (32, 1, 1), (512, 256, 1), (384, 128, 6)]
    ),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(4, 8),
    symmetric=st.booleans(),
    channel=st.booleans(),
    keep=st.booleans(),
)  # fmt: skip
def test_hadamard_blocks_are_mixed_in_the_order_of_the_definition(
    device, tokens, width_block_groups, dtype, bits, symmetric, channel, keep
) -> None:
    width, block, groups = width_block_groups
    factor = torch.rand(width, generator=torch.Generator().manual_seed(width)) + 0.5 if channel else None
    transform, acts = InputTransform(scale=factor, hadamard=block), ActFormat(bits, symmetric, groups)
    x = rows((tokens, width), dtype=dtype)
    made, values = quantized(device, x, transform, acts, keep), transform_input(x, transform)
    assert torch.equal(made.values, values) if keep else made.values is None
    check_rounding(made, values, transform, acts)


@pytest.mark.parametrize(("size", "groups", "block"), [(64, 30, 128), (16, 480, 128), (1920, 1, 128), (80, 96, 16)])
def test_no_released_layout_of_hadamard_blocks_is_left_to_torch(size: int, groups: int, block: int) -> None:
    from s2q.runtime.gpu import tokens

    assert tokens._groups_together(size, groups, block) is not None


@pytest.mark.parametrize("width", [16, 96])
def test_a_row_with_nan_stays_nan_and_spares_the_others(device: str, width: int) -> None:
    x = rows((3, width))
    x[1, 5] = torch.nan
    for transform in (InputTransform(), kronecker(width)):
        made = quantized(device, x, transform, ActFormat(6))
        assert made.scale.isnan().flatten().tolist() == [False, True, False]


def test_views_are_read_right_and_left_alone(device: str) -> None:
    x = rows((96, 3)).mT
    before = x.clone()
    assert torch.equal(quantized(device, x, kronecker(96), ActFormat(6)).codes,
                       quantized(device, before, kronecker(96), ActFormat(6)).codes)  # fmt: skip
    assert torch.equal(x, before)


def test_what_is_declined_is_declined_with_the_reason(device: str) -> None:
    acts, wide = ActFormat(6), torch.eye(1024, device=device)
    x = torch.zeros(1, 1024 * 2, device=device)
    pair = InputTransform(left=torch.eye(2, device=device), right=wide)
    assert backend.why_not_quantize(x, pair, acts) is None
    assert "float64" in backend.why_not_quantize(x.double(), pair, acts)
    assert "no tokens" in backend.why_not_quantize(x[:0], pair, acts)
    large = InputTransform(left=wide, right=wide)
    assert "1024 × 1024 values" in backend.why_not_quantize(x, large, acts)
    assert "at most 32768" in backend.why_not_quantize(torch.zeros(1, 32769, device=device), InputTransform(), acts)
    assert "meta" in backend.why_not_quantize(x.to("meta"), pair, acts)
