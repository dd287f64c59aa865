"""The samples are those that the sampler promises, and the same ones every time."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.calibration.selection import Sample, check_pool, select
from s2q.recipe import SamplerSpec

few = settings(max_examples=40, deadline=None)
KINDS = ("salient", "random", "uniform")


def pool(prompts: int = 4, steps: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(prompts, steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(1, 9), st.integers(0, 99), st.data())
def test_asked_for_and_given_are_as_many_distinct_and_sorted(kind, prompts, steps, seed, data) -> None:
    count = data.draw(st.integers(1, prompts * steps))
    samples = select(pool(prompts, steps), SamplerSpec(kind=kind, count=count), seed)
    assert len(set(samples)) == len(samples) == count
    assert samples == sorted(samples)
    assert all(0 <= prompt < prompts and 0 <= step < steps for prompt, step in samples)


@few
@given(st.integers(0, 99), st.integers(1, 23))
def test_no_sample_left_out_is_more_salient_than_one_taken(seed: int, count: int) -> None:
    scores = pool(seed=seed)
    taken = select(scores, SamplerSpec(kind="salient", count=count), 0)
    others = [scores[p, t] for p in range(4) for t in range(6) if Sample(p, t) not in taken]
    assert min(scores[sample] for sample in taken) >= max(others)


def test_salient_does_not_depend_on_the_seed_and_ties_go_to_the_earlier() -> None:
    sampler = SamplerSpec(kind="salient", count=3)
    assert select(pool(), sampler, 0) == select(pool(), sampler, 1)
    assert select(torch.ones(2, 4), sampler, 0) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("count", [6, 12, 18])
def test_uniform_covers_all_steps_evenly(count: int) -> None:
    samples = select(pool(), SamplerSpec(kind="uniform", count=count), 3)
    assert set(Counter(sample.step for sample in samples).values()) == {count // 6}


@few
@given(st.integers(1, 24), st.integers(0, 50))
def test_uniform_never_favours_a_step_by_more_than_one(count: int, seed: int) -> None:
    samples = select(pool(), SamplerSpec(kind="uniform", count=count), seed)
    times = [sum(sample.step == step for sample in samples) for step in range(6)]
    assert max(times) - min(times) <= 1


def test_uniform_does_not_always_take_the_same_prompts() -> None:
    chosen = {prompt for seed in range(8) for prompt, _ in select(pool(), SamplerSpec(kind="uniform", count=6), seed)}
    assert chosen == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["random", "uniform"])
def test_seed_decides_and_nothing_else_does(kind: str) -> None:
    sampler = SamplerSpec(kind=kind, count=8)
    torch.manual_seed(1)
    one = select(pool(), sampler, 5)
    torch.manual_seed(2)
    assert select(pool(seed=9), sampler, 5) == one
    assert select(pool(), sampler, 6) != one


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_candidates_are_an_error_with_the_numbers(kind: str) -> None:
    with pytest.raises(ValueError, match=r"25 .* 4 prompts × 6 steps .* 24"):
        select(pool(), SamplerSpec(kind=kind, count=25), 0)


def test_a_sampler_that_chooses_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="none"):
        select(pool(), SamplerSpec(kind="none", count=1), 0)


def test_scores_that_are_not_numbers_are_not_taken_for_the_most_salient() -> None:
    scores = pool()
    scores[2, 3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        select(scores, SamplerSpec(kind="salient", count=4), 0)


def test_stratified_takes_the_best_prompts_of_each_step() -> None:
    scores = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    samples = select(scores, SamplerSpec(kind="salient", stratified=True, count=10), 0)
    counts = [sum(step == own for _, own in samples) for step in range(4)]
    assert sorted(counts) == [2, 2, 3, 3]
    for step, count in enumerate(counts):
        best = set(scores[:, step].argsort(descending=True)[:count].tolist())
        assert {prompt for prompt, own in samples if own == step} == best


BALANCED = {"kind": "salient", "stratified": True, "balanced": True}


@settings(max_examples=60, deadline=None)
@given(prompts=st.integers(1, 12), steps=st.integers(1, 12), share=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_balanced_takes_evenly_of_steps_and_of_prompts(prompts: int, steps: int, share: float, seed: int) -> None:
    count = max(1, int(share * prompts * steps))
    scores = torch.rand(prompts, steps, generator=torch.Generator().manual_seed(seed))
    samples = select(scores, SamplerSpec(count=count, **BALANCED), 0)
    assert len(set(samples)) == count
    of_steps = [sum(step == own for _, own in samples) for step in range(steps)]
    assert max(of_steps) - min(of_steps) <= 1
    of_prompts = [sum(prompt == own for own, _ in samples) for prompt in range(prompts)]
    assert max(of_prompts) <= -(-count // prompts)


def test_balanced_takes_the_prompts_that_are_worth_most_where_steps_compete_for_them() -> None:
    # Prompt 0 is the best of both steps; the second best is nearer to it at the first step, so it stands for the second.
    scores = torch.tensor([[5.0, 0.3], [4.0, 0.2], [1.0, 0.1]])
    assert set(select(scores, SamplerSpec(count=2, **BALANCED), 0)) == {(1, 0), (0, 1)}


def test_balanced_is_about_strata() -> None:
    with pytest.raises(ValueError, match="stratified=true"):
        SamplerSpec(kind="salient", balanced=True)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_prompts_of_the_pool_are_chosen_from(kind: str) -> None:
    samples = select(torch.rand(6, 5), SamplerSpec(kind=kind, count=10, pool=2), 0)
    assert {prompt for prompt, _ in samples} == {0, 1}
    assert len(set(samples)) == 10


def test_a_pool_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="1 prompts × 5 steps give only 5"):
        check_pool(6, 5, SamplerSpec(kind="uniform", count=10, pool=1))
