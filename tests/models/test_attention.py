"""Received attention against the dense map, and the tap that sees it in a model."""

import math

import pytest
import torch
from tiny import make_inputs
from tiny_families import FAMILIES, make_hunyuan, make_hunyuan_inputs
from torch import nn

from s2q.models import Family, resolve
from s2q.models.attention import AttentionTap, received_attention
from s2q.models.blocks import joined_tokens, record_calls, replay
from s2q.models.families import COGVIDEOX, HUNYUAN_VIDEO


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1]) + bias
    return scores.softmax(-1).sum((1, 2))


@pytest.mark.parametrize("chunk", [1, 4, 7, 8, 256])
def test_equals_the_columns_of_the_dense_map_whatever_the_chunk(chunk: int) -> None:
    query, key = normal(2, 3, 8, 5), normal(2, 3, 11, 5, seed=1)
    received = received_attention(query, key, chunk=chunk)
    assert torch.allclose(received, dense(query, key), rtol=1e-5)
    assert torch.allclose(received.sum(1), torch.full((2,), 3.0 * 8)), "sums to H · S_q"


@pytest.mark.parametrize("shape", [(2, 1, 1, 9), (1, 1, 9, 9), (2, 3, 9, 9)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masked_tokens_receive_nothing(kind: str, shape: tuple[int, ...]) -> None:
    query, key = normal(2, 3, 9, 5), normal(2, 3, 9, 5, seed=1)
    allowed = normal(*shape, seed=2) > -0.5
    allowed[..., 0], allowed[..., 4] = True, False
    bias = torch.zeros(shape).masked_fill(~allowed, -math.inf)
    received = received_attention(query, key, allowed if kind == "bool" else bias, chunk=4)
    assert torch.allclose(received, dense(query, key, bias), rtol=1e-5, atol=1e-6)
    assert bool((received[:, 4] == 0).all())


def test_half_precision_is_summed_in_full() -> None:
    query, key = normal(1, 2, 600, 4).bfloat16(), normal(1, 2, 600, 4, seed=1).bfloat16()
    received = received_attention(query, key)
    assert received.dtype == torch.float32
    assert torch.allclose(received, dense(query.float(), key.float()), rtol=1e-4)


@torch.no_grad()
def test_the_tap_sees_the_self_attention_of_every_block_and_changes_nothing(transformer: nn.Module) -> None:
    received: dict[int, torch.Tensor] = {}
    expected = transformer(**make_inputs(), return_dict=False)[0]
    with AttentionTap(transformer, COGVIDEOX, received.__setitem__):
        output = transformer(**make_inputs(), return_dict=False)[0]
    assert torch.equal(output, expected)
    assert sorted(received) == [0, 1]
    tokens = 8 + 2 * 2 * 2
    for sums in received.values():
        assert sums.shape == (2, tokens)
        assert torch.allclose(sums.sum(1), torch.full((2,), 2.0 * tokens))


@torch.no_grad()
def test_the_tap_is_gone_afterwards(transformer: nn.Module) -> None:
    seen: list[int] = []
    with AttentionTap(transformer, COGVIDEOX, lambda index, _: seen.append(index)):
        transformer(**make_inputs())
    transformer(**make_inputs())
    assert seen == [0, 1]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in transformer.modules())


@torch.no_grad()
def test_attention_that_is_not_seen_is_an_error_that_names_the_block(transformer: nn.Module) -> None:
    fused = transformer.transformer_blocks[1].attn1

    def linear_attention(hidden_states, encoder_hidden_states, **_):
        return hidden_states, encoder_hidden_states

    fused.forward = linear_attention
    with (
        pytest.raises(RuntimeError, match=r"blocks \[1\]"),
        AttentionTap(transformer, COGVIDEOX, lambda *_: None),
    ):
        transformer(**make_inputs())


def test_an_error_inside_is_not_hidden_by_the_tap(transformer: nn.Module) -> None:
    with pytest.raises(KeyError, match="mine"), AttentionTap(transformer, COGVIDEOX, lambda *_: None):
        raise KeyError("mine")


@torch.no_grad()
def test_attention_elsewhere_is_not_taken_for_self_attention(transformer: nn.Module) -> None:
    seen: list[int] = []
    with AttentionTap(transformer, COGVIDEOX, lambda index, _: seen.append(index)):
        nn.functional.scaled_dot_product_attention(normal(1, 1, 2, 4), normal(1, 1, 2, 4), normal(1, 1, 2, 4))
        transformer(**make_inputs())
    assert seen == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_each_block_is_seen_once_with_the_tokens_of_its_self_attention(name: str) -> None:
    tiny_family = FAMILIES[name]
    model, received = tiny_family.make_transformer(), []
    family, tokens = resolve(model), tiny_family.video_tokens + tiny_family.text_tokens
    expected = model(**tiny_family.make_inputs(), return_dict=False)[0]
    with AttentionTap(model, family, lambda index, sums: received.append((index, sums))):
        output = model(**tiny_family.make_inputs(), return_dict=False)[0]
    assert torch.equal(output, expected)
    # Once each, in order: cross-attention and the text's own refiner are not counted.
    assert [index for index, _ in received] == list(range(len(family.blocks(model))))
    for _, sums in received:
        assert sums.shape == (2, tokens)
        assert torch.allclose(sums.sum(1), torch.full((2,), 2.0 * tokens))


@torch.no_grad()
def test_padding_of_hunyuans_text_stands_last_and_receives_nothing() -> None:
    model, received = make_hunyuan(), {}
    with AttentionTap(model, HUNYUAN_VIDEO, received.__setitem__):
        model(**make_hunyuan_inputs())
    for sums in received.values():
        for row, length in enumerate((5, 3)):
            assert bool((sums[row, : 8 + length] > 0).all())
            assert bool((sums[row, 8 + length :] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_joined_tokens_is_that_of_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[name].make_transformer()
    family = resolve(model)
    block = family.blocks(model)[0][1]
    states, sides, _ = record_calls(model, family, FAMILIES[name].make_inputs())
    keys: list[torch.Tensor] = []
    attend = nn.functional.scaled_dot_product_attention

    def watched(query, key, *args, **kwargs):
        keys.append(key)
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    replay(block, family, states, sides[0])
    original = keys[0]
    for state in states:
        changed = {key: value.clone() for key, value in states.items()}
        changed[state][:, 1] += torch.arange(32.0)
        keys.clear()
        replay(block, family, changed, sides[0])
        moved = (keys[0] != original).any(dim=(1, 3))[0]
        joined = (joined_tokens(family, changed) != joined_tokens(family, states)).any(dim=2)[0]
        assert int(moved.sum()) == 1
        assert torch.equal(moved, joined)


def test_the_scale_that_the_model_gives_is_taken() -> None:
    query, key = normal(1, 2, 5, 4), normal(1, 2, 5, 4, seed=1)
    expected = (query @ key.mT * 0.1).softmax(-1).sum((1, 2))
    assert torch.allclose(received_attention(query, key, scale=0.1), expected, rtol=1e-5)


def test_queries_that_see_nothing_give_nothing_and_no_nan() -> None:
    query, key = normal(1, 1, 4, 4), normal(1, 1, 4, 4, seed=1)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 1, :] = False
    assert float(received_attention(query, key, mask).sum()) == pytest.approx(3)


class Attends(nn.Module):
    """A block that calls attention as it is told to."""

    def __init__(self, **how) -> None:
        super().__init__()
        self.attn1, self.how = nn.Identity(), how
        self.attn1.forward = self.attend

    def attend(self, hidden_states):
        q = hidden_states.unsqueeze(1)
        q = q.repeat(1, 4, 1, 1)
        nn.functional.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True, **self.how)
        return hidden_states

    def forward(self, hidden_states):
        return self.attn1(hidden_states)


class Model(nn.Module):
    """One such block."""

    def __init__(self, **how) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attends(**how)])

    def forward(self, hidden_states):
        return self.blocks[0](hidden_states)


ATTENDS = Family("attends", "", ("Model",), ("blocks",), ("hidden_states",), ("hidden_states",), "attn1")


def test_grouped_queries_are_counted_for_every_head() -> None:
    received: dict[int, torch.Tensor] = {}
    with AttentionTap(model := Model(), ATTENDS, received.__setitem__):
        model(normal(1, 5, 8))
    assert float(received[0].sum()) == pytest.approx(4 * 5)


def test_causal_attention_is_refused_with_what_to_do() -> None:
    model = Model(is_causal=True)
    with pytest.raises(RuntimeError, match="without token weights"), AttentionTap(model, ATTENDS, lambda *_: None):
        model(normal(1, 5, 8))
