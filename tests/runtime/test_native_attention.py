"""Native int8 attention gives the bits of the definition on every instruction set, and the definition is attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from s2q.runtime import attention_reference as reference
from s2q.runtime.native import attention as native
from s2q.runtime.native import sharing

SETS = native.instruction_sets()
needs_native = pytest.mark.skipif(not SETS, reason="s2q was installed without a C compiler")
KINDS = ["none", "bool", "keys", "block of keys", "additive", "finfo", "bfloat16"]


def made(shape: tuple[int, ...], dtype: torch.dtype, seed: int, offset: float = 0.0) -> Tensor:
    """Tokens as models give them: heads before tokens, but not so in memory; channels with means of their own."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, tokens, width = shape
    x = torch.randn(batch, tokens, heads, width, generator=generator)
    return (x + offset * torch.randn(width, generator=generator)).to(dtype).transpose(1, 2)


def mask_of(kind: str, batch: int, queries: int, keys: int, seed: int) -> Tensor | None:
    """A mask of a kind that models or users pass; some rows of some see nothing."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(batch, 1, queries, keys, generator=generator) > 0.4
    seen[:, :, queries // 2] = False
    return {
        "none": None,
        "bool": seen,
        "keys": seen[:, :, :1],
        "block of keys": (torch.arange(keys) < 5).expand(1, 1, 1, keys),
        "additive": torch.zeros(seen.shape).masked_fill(~seen, -math.inf),
        "finfo": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
        "bfloat16": torch.randn(queries, keys, generator=generator).bfloat16(),
    }[kind]


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    tokens=st.tuples(st.sampled_from([1, 2, 31, 33, 70]), st.sampled_from([1, 3, 63, 64, 65, 150])),
    widths=st.tuples(st.sampled_from([1, 3, 16, 40, 64, 68, 130]), st.sampled_from([1, 8, 20, 64, 72])),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([None, 0.3, 4.0]),
    seed=st.integers(0, 9999),
)
def test_every_instruction_set_gives_the_bits_of_the_definition(
    heads, tokens, widths, dtype, kind, scale, seed
) -> None:
    query, key = (made((*heads, count, widths[0]), dtype, seed + index, 2.0) for index, count in enumerate(tokens))
    value = made((*heads, tokens[1], widths[1]), dtype, seed + 2, 1.0)
    mask = mask_of(kind, heads[0], *tokens, seed)
    scale = widths[0] ** -0.5 if scale is None else scale
    centre = reference.means(key, value)
    expected = reference.int8_attention(query, key, value, mask, scale, centre)
    for name in SETS:
        assert torch.equal(native.int8_attention(query, key, value, mask, scale, centre, name), expected), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_definition_is_attention_but_for_rounding(kind: str, dtype: torch.dtype) -> None:
    query, key, value = (made((2, 3, tokens, 64), dtype, index, 1.0) for index, tokens in enumerate((40, 150, 150)))
    mask = mask_of(kind, 2, 40, 150, 0)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out = reference.int8_attention(query, key, value, mask, 0.125, reference.means(key, value))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert out.dtype == dtype
    # A share of 8 bits, a key, a query and a value of 8 bits each; bfloat16 has no more itself.
    assert (out.float() - expected.float()).norm() < 0.01 * expected.float().norm()


def test_a_channel_that_all_keys_share_costs_nothing() -> None:
    query, key, value = (made((1, 2, 70, 32), torch.float32, index) for index in range(3))
    shifted = key + 100 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    expected = scaled_dot_product_attention(query, key, value)
    out = reference.int8_attention(query, shifted, value + 9, None, 32**-0.5, reference.means(shifted, value + 9)) - 9
    assert (out - expected).norm() < 0.03 * expected.norm()


def test_powers_of_two_are_within_their_stated_error() -> None:
    x = torch.linspace(-125, 0, 100_001)
    exact = torch.exp2(x.double())
    assert ((reference.power_of_two(x).double() - exact) / exact).abs().max() < 3.5e-6
    assert reference.power_of_two(torch.zeros(1)).item() == 1
    assert reference.power_of_two(torch.tensor([-math.inf, math.nan])).max() < 1e-37


def test_shares_are_rounded_powers_of_two_and_never_rise_with_distance() -> None:
    gap = torch.arange(0, reference.FURTHEST + 1).float()
    found = reference.shares(gap)
    exact = 255 * torch.exp2(-gap.double() / reference.OCTAVE)
    assert (found - exact).abs().max() < 0.55, "half a code is rounding, the rest the polynomial's error"
    assert (found.diff() <= 0).all()
    assert (found[0], found[-1]) == (255, 0)
    assert reference.shares(torch.tensor([math.inf, math.nan, 1e30])).tolist() == [0, 0, 0]


def place_of_nan(which: str) -> tuple[Tensor, Tensor, Tensor]:
    tensors = {name: made((1, 2, 40, 16), torch.float32, index) for index, name in enumerate(("q", "k", "v"))}
    tensors[which][0, 1, 35, 3] = math.nan
    return tuple(tensors.values())


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["none", "block of keys"])
def test_nan_goes_where_torch_lets_it_go(which: str, kind: str) -> None:
    query, key, value = place_of_nan(which)
    mask = mask_of(kind, 1, 40, 40, 0)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    centre = reference.means(key, value)
    out = reference.int8_attention(query, key, value, mask, 0.25, centre)
    assert torch.equal(out.isnan(), expected.isnan())
    for name in SETS:
        assert torch.equal(native.int8_attention(query, key, value, mask, 0.25, centre, name).isnan(), expected.isnan())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_mask_that_is_not_a_number_gives_nan_in_its_row(wrong: float) -> None:
    query, key, value = (made((1, 1, 40, 16), torch.float32, index) for index in range(3))
    mask = torch.zeros(40, 40)
    mask[34, 5] = wrong
    centre = reference.means(key, value)
    out = reference.int8_attention(query, key, value, mask, 0.25, centre)
    assert out.isnan().all(dim=-1).flatten().nonzero().flatten().tolist() == [34]
    for name in SETS:
        native_out = native.int8_attention(query, key, value, mask, 0.25, centre, name)
        torch.testing.assert_close(native_out, out, rtol=0, atol=0, equal_nan=True)


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("torchs", [True, False])
def test_any_number_of_threads_of_torchs_or_others_gives_the_same_bits(
    torchs: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torchs:
        monkeypatch.setattr(sharing, "team", lambda: None)
    elif sharing.team():
        monkeypatch.delattr(sharing, "_pool")
    query, key, value = (made((2, 3, 100, 16), torch.float32, index) for index in range(3))
    centre = reference.means(key, value)
    expected = native.int8_attention(query, key, value, None, 0.25, centre)
    monkeypatch.setattr(native, "WORTH_A_THREAD", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(native.int8_attention(query, key, value, None, 0.25, centre), expected)


@needs_native
def test_nothing_beside_the_output_is_written_and_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs begin as NaN, and every buffer has a guard behind it."""
    empty, guard, kept = torch.empty, 64, []

    def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = math.prod(shape)
        buffer = empty(count + guard, dtype=dtype).fill_(77)
        kept.append(buffer)
        return buffer[:count].view(shape)

    query, key, value = (made((1, 2, tokens, 20), torch.float32, 0) for tokens in (33, 67, 67))
    expected = reference.int8_attention(query, key, value, None, 0.25, reference.means(key, value))
    centre = reference.means(key, value)
    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: guarded(*shape).fill_(math.nan))
    for name in SETS:
        assert torch.equal(native.int8_attention(query, key, value, None, 0.25, centre, name), expected)
    assert kept
    assert all((buffer[-guard:] == 77).all() for buffer in kept)


def test_what_is_demanded_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: "not built")
    assert native.why_not() == "not built"
    assert native.instruction_sets() == []
    monkeypatch.setenv("S2Q_BACKEND", "native")
    with pytest.raises(RuntimeError, match="not built"):
        native.why_not()
    monkeypatch.setenv("S2Q_BACKEND", "torch")
    assert native.why_not() == "S2Q_BACKEND is torch"
