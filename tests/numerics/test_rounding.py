"""AdaRound's soft step."""

import pytest
import torch

from s2q.numerics.rounding import initial_logit, penalty_exponent, rounding_penalty, soft_round_up


def test_learning_starts_at_the_float_weight() -> None:
    ratio = torch.tensor([-2.9, -1.0, -0.25, 0.0, 0.5, 3.999])
    assert torch.allclose(ratio.floor() + soft_round_up(initial_logit(ratio)), ratio, atol=1e-5)


def test_the_step_reaches_both_ends() -> None:
    assert soft_round_up(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0.0, 0.5, 1.0]


def test_the_penalty_is_gone_when_all_have_decided_and_most_at_the_middle() -> None:
    assert float(rounding_penalty(torch.tensor([-9.0, 9.0]), 2.0)) == 0
    assert float(rounding_penalty(torch.tensor([0.0]), 2.0)) == 1
    near_an_end = torch.tensor([1.5])
    assert float(rounding_penalty(near_an_end, 2.0)) < float(rounding_penalty(near_an_end, 20.0))


def test_the_exponent_waits_then_falls_from_start_to_end() -> None:
    assert penalty_exponent(0.1) is None
    assert penalty_exponent(0.2) == pytest.approx(20)
    assert penalty_exponent(0.6) == pytest.approx(11)
    assert penalty_exponent(1.0) == pytest.approx(2)
