"""A weight split into a few directions and a remainder."""

import torch

from s2q.numerics.lowrank import output_error, split_low_rank, truncated_svd
from s2q.numerics.quantizer import row_scale
from s2q.numerics.straight_through import fake_quantize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return fake_quantize(weight, row_scale(weight, 4), 4)


def test_a_weight_of_low_rank_is_its_own_approximation() -> None:
    weight = normal(12, 3) @ normal(3, 20, seed=1)
    up, down = truncated_svd(weight, 3)
    assert torch.allclose(up @ down, weight)
    assert up.shape == (12, 3)
    assert down.shape == (3, 20)


def test_output_error_is_that_of_the_outputs() -> None:
    x, e = normal(50, 20), normal(12, 20, seed=1)
    assert abs(output_error(e, x.mT @ x) / float((x @ e.mT).square().sum()) - 1) < 1e-9


def test_taking_directions_out_helps_and_refitting_never_hurts() -> None:
    x, weight = normal(200, 20) * torch.logspace(0, 1, 20, dtype=torch.float64), normal(12, 20, seed=1)
    weight[:, 3] *= 20  # an outlier that a single direction can carry
    gram = x.mT @ x
    errors = []
    for rounds in (0, 20):
        up, down = split_low_rank(weight, 2, rounded, gram, rounds)
        assert up.dtype == down.dtype == torch.bfloat16
        branch = up.double() @ down.double()
        errors.append(output_error(weight - branch - rounded(weight - branch), gram))
    plain = output_error(weight - rounded(weight), gram)
    assert errors[1] <= errors[0] < plain
