"""Eq. 11: the weights of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_inputs
from torch import nn

from s2q.models.families import COGVIDEOX
from s2q.quantization.tokens import received_by_block, token_weights, weights_by_part

few = settings(max_examples=40, deadline=None)


def received(seed: int, tokens: int = 9) -> torch.Tensor:
    return torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 9 - 4)


@few
@given(st.integers(0, 999), st.floats(0, 0.9))
def test_weights_span_exactly_the_range_asked_for(seed: int, low: float) -> None:
    weights = token_weights(received(seed), low, 1.0)
    assert torch.allclose(weights.amin(1), torch.full((2,), low), atol=1e-6)
    assert torch.allclose(weights.amax(1), torch.ones(2), atol=1e-6)


@few
@given(st.integers(0, 999))
def test_who_receives_more_counts_more(seed: int) -> None:
    sums = received(seed)
    assert torch.equal(token_weights(sums).argsort(1), sums.argsort(1))


@few
@given(st.integers(0, 999))
def test_order_of_the_tokens_does_not_matter(seed: int) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(token_weights(received(seed)[:, order]), token_weights(received(seed))[:, order])


def test_the_formula_on_numbers() -> None:
    assert token_weights(torch.tensor([[0.0, 1.0, 4.0]]), 0.5, 1.0).tolist() == [[0.5, 0.625, 1.0]]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30])
def test_tokens_that_all_receive_the_same_count_fully(value: float) -> None:
    assert torch.equal(token_weights(torch.full((2, 5), value), 0.5, 1.0), torch.ones(2, 5))


def test_rows_are_weighted_apart() -> None:
    sums = torch.tensor([[0.0, 1.0], [100.0, 300.0]])
    assert torch.equal(token_weights(sums), torch.tensor([[0.5, 1.0], [0.5, 1.0]]))


def test_a_model_gives_one_row_a_block_and_guidance_branch(transformer: nn.Module) -> None:
    rows = received_by_block(transformer, COGVIDEOX, make_inputs())
    assert len(rows) == 2
    assert all(row.shape == (2, 16) for row in rows)


def test_parts_are_normalised_apart() -> None:
    received = torch.tensor([[10.0, 20.0, 1.0, 2.0, 1.5]])
    together = weights_by_part(received, [slice(None)], 0.5, 1.0)
    assert torch.equal(together, token_weights(received, 0.5, 1.0))
    apart = weights_by_part(received, [slice(0, 2), slice(2, 5)], 0.5, 1.0)
    assert torch.allclose(apart, torch.tensor([[0.5, 1.0, 0.5, 1.0, 0.75]]))
