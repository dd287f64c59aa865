"""What flows between blocks is the same from memory and from disk, and nothing of it outlives the process."""

from pathlib import Path

import pytest
import torch

from s2q.hidden import HiddenStates, Samples


@pytest.mark.parametrize("on_disk", [False, True])
def test_states_come_back_bit_for_bit_and_can_be_replaced(on_disk: bool, tmp_path: Path) -> None:
    states = HiddenStates(tmp_path / "states" if on_disk else None)
    first = {"hidden_states": torch.randn(2, 3, 4).bfloat16(), "encoder_hidden_states": torch.randn(2, 1, 4)}
    states[0], states[7] = first, {"hidden_states": torch.zeros(1)}
    states[7] = {"hidden_states": torch.ones(1)}
    assert states[0].keys() == first.keys()
    assert all(
        torch.equal(states[0][name], tensor) and states[0][name].dtype == tensor.dtype for name, tensor in first.items()
    )
    assert float(states[7]["hidden_states"]) == 1
    assert (0 in states, 1 in states) == (True, False)


def test_leftovers_of_a_killed_process_are_not_taken_for_states(tmp_path: Path) -> None:
    HiddenStates(tmp_path / "states")[3] = {"hidden_states": torch.zeros(1)}
    assert 3 not in HiddenStates(tmp_path / "states")


def test_a_view_of_a_larger_tensor_can_be_kept_on_disk(tmp_path: Path) -> None:
    states, whole = HiddenStates(tmp_path / "states"), torch.arange(12.0).reshape(3, 4)
    states[0] = {"hidden_states": whole[:, ::2], "encoder_hidden_states": whole[1:]}
    assert torch.equal(states[0]["hidden_states"], whole[:, ::2])


def test_samples_are_made_one_at_a_time_and_end() -> None:
    made: list[int] = []
    samples = Samples(3, lambda index: made.append(index) or index)
    assert made == []
    assert list(samples) == [0, 1, 2] == made
    assert len(samples) == 3
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            samples[outside]
