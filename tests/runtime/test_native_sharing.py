"""Work is shared out over torch's own threads where they are OpenMP's, and what fails in one of them is told."""

import sys

import pytest
import torch

from s2q.runtime.native import library, sharing


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch may bring another OpenMP, or none")
def test_torchs_threads_are_found_on_linux() -> None:
    assert torch.backends.openmp.is_available() == (sharing.team() is not None)


@pytest.mark.parametrize(("count", "threads"), [(0, 3), (1, 3), (2, 3), (7, 3), (9, 1)])
def test_ranges_are_the_whole_and_none_is_taken_twice(count: int, threads: int) -> None:
    taken: list[int] = []
    sharing.share_out(lambda start, stop: taken.extend(range(start, stop)), count, threads)
    assert sorted(taken) == list(range(count))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_part_without_memory_is_an_error(threads: int) -> None:
    with pytest.raises(MemoryError, match="scratch"):
        sharing.share_out(lambda start, stop: int(start == 0), 4, threads)


@pytest.mark.skipif(not library.instruction_sets() or not sharing.team(), reason="no native code, or no OpenMP")
def test_a_team_that_is_smaller_than_asked_for_does_it_all() -> None:
    alone = library.peak(10, 1)
    # More threads than any team has here: those there are take several shares each.
    assert library.peak(10, 3) == 3 * alone
