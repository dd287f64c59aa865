"""What cannot fit is refused with figures before anything is loaded, and nothing else is."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny import CALL, PROMPTS, cheap

from s2q.cli_open import fitting_stream
from s2q.fitting import TooLargeError, choose_stream, free_disk, free_memory
from s2q.planning import Plan, plan

GIB = 1 << 30


@pytest.fixture(scope="module")
def planned(tiny_pipeline: Path) -> Plan:
    made = plan(tiny_pipeline, cheap("s2q_vdit", "W4A6"), CALL, timed=False)
    sizes = {"memory_bytes": 8, "streamed_memory_bytes": 2, "disk_bytes": 1, "streamed_disk_bytes": 4}
    return replace(made, **{name: count * GIB for name, count in sizes.items()})


# asked for, GiB of memory, of disk → what is done
CASES = [
    (None, 16, 16, None),
    (False, 16, 16, False),
    (True, 16, 16, True),
    (None, 4, 16, True),
    (None, 16, 2, False),
    (True, 4, 16, True),
]


@pytest.mark.parametrize(("stream", "memory", "disk", "done"), CASES)
def test_what_fits_is_done_as_asked_or_in_the_way_that_fits(
    stream: bool | None, memory: int, disk: int, done: bool | None, planned: Plan
) -> None:
    assert choose_stream(planned, stream, memory * GIB, disk * GIB) is done


@pytest.mark.parametrize(("stream", "memory", "disk"), [(None, 1, 16), (None, 4, 2), (False, 4, 16), (True, 16, 2)])
def test_what_does_not_is_refused_with_the_figures(stream: bool | None, memory: int, disk: int, planned: Plan) -> None:
    with pytest.raises(TooLargeError, match=r"8\.000 GiB of memory \(2\.000 GiB with --stream\).*--force"):
        choose_stream(planned, stream, memory * GIB, disk * GIB)


def test_what_is_free_is_asked_where_the_work_will_be(tmp_path: Path) -> None:
    assert 0 < free_memory("cpu") <= psutil.virtual_memory().total
    assert free_disk(tmp_path / "not" / "there") == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.1)


def test_the_command_looks_unless_it_is_forced(tiny_pipeline: Path, tmp_path: Path, monkeypatch) -> None:
    from s2q import fitting

    monkeypatch.setattr(fitting, "free_memory", lambda device: 1000)
    where = {"device": "cpu", "dtype": None, "stream": None}
    given = (str(tiny_pipeline), cheap("s2q_vdit", "W4A6"), tmp_path / "out", dict(CALL), PROMPTS)
    with pytest.raises(TooLargeError, match="1000 B of memory"):
        fitting_stream(*given, **where)
    assert fitting_stream(*given, **where, force=True) is None
