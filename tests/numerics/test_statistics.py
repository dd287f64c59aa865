"""Spearman's ρ, against scipy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from s2q.numerics.statistics import ranks, spearman


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=20), st.integers(0, 100))
def test_ties_share_a_rank_and_the_correlation_is_scipys(values: list[int], seed: int) -> None:
    one = torch.tensor(values, dtype=torch.float64)
    other = torch.randn(len(values), generator=torch.Generator().manual_seed(seed))
    assert ranks(one).tolist() == (rankdata(values) - 1).tolist()
    if len(set(values)) > 1:
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


def test_a_constant_correlates_with_nothing() -> None:
    assert spearman(torch.ones(5), torch.arange(5.0)) == 0
