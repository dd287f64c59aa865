"""Parts of a block's loss beside Eq. 10."""

import pytest
import torch

from s2q.models.families import FRAMEPACK
from s2q.quantization.objective import (
    BlockSample,
    block_loss,
    frame_similarity,
    guided_error,
    temporal_error,
    weighted_error,
)
from s2q.recipe import ObjectiveSpec


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TARGET = normal(4, 12, 8)


def test_similarity_is_the_softmax_of_the_cosines_of_frames() -> None:
    logs = frame_similarity(TARGET, 3)
    frames = TARGET[1].reshape(3, 32)
    cosines = torch.tensor(
        [[float(torch.cosine_similarity(frames[i], frames[j], dim=0)) for j in range(3)] for i in range(3)]
    )
    assert torch.allclose(logs[1].exp(), cosines.softmax(-1), atol=1e-5)


def test_temporal_error_is_zero_for_the_same_and_positive_for_other_motion() -> None:
    assert float(temporal_error(TARGET, TARGET, 3)) == pytest.approx(0, abs=1e-6)
    assert float(temporal_error(TARGET * 2, TARGET, 3)) == pytest.approx(0, abs=1e-6)
    still = TARGET[:, :4].repeat(1, 3, 1)
    assert float(temporal_error(still, TARGET, 3)) > 0.1


def test_similarities_of_frames_are_of_the_clip_and_not_of_the_history_before_it() -> None:
    target = normal(1, 5 + 12 + 2, 8)  # history, three frames, text
    sample = BlockSample({}, {}, target, frames=3, video_tokens=12)

    def temporal(output: torch.Tensor) -> float:
        states = {"hidden_states": output[:, :17], "encoder_hidden_states": output[:, 17:]}
        losses = [
            block_loss(FRAMEPACK, states, sample, ObjectiveSpec(kind="mse", temporal=weight)) for weight in (0, 1)
        ]
        return float(losses[1] - losses[0])

    output = target + normal(1, 19, 8, seed=1)
    assert temporal(output) == pytest.approx(float(temporal_error(output[:, 5:17], target[:, 5:17], 3)), rel=1e-4)


def test_errors_that_both_branches_share_are_counted_once_and_their_gap_by_the_scale() -> None:
    sample = BlockSample({}, {}, TARGET, guidance=3.0)
    shared = normal(2, 12, 8, seed=1).repeat_interleave(2, 0)
    assert float(guided_error(TARGET + shared, sample)) == pytest.approx(
        float(weighted_error(TARGET + shared, sample)), rel=1e-5
    )
    only_cond = shared * torch.tensor([0.0, 1.0]).repeat(2)[:, None, None]
    # Half of the rows carry it, three times as large: 9 against a mean of 1/2.
    assert float(guided_error(TARGET + only_cond, sample)) == pytest.approx(
        18 * float(weighted_error(TARGET + only_cond, sample)), rel=1e-5
    )


def test_token_weights_reach_the_guided_error() -> None:
    weights = torch.ones(4, 12)
    weights[:, :6] = 0
    sample = BlockSample({}, {}, TARGET, weights, guidance=3.0)
    error = normal(4, 12, 8, seed=1)
    error[:, 6:] = 0
    assert float(guided_error(TARGET + error, sample)) == 0
