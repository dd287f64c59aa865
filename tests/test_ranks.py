"""Several processes make what one makes, bit for bit, and a rank that died is made up for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import CALL, PROMPTS, cheap, folder_bytes

from s2q.models.pipelines import open_pipeline
from s2q.progress import NoProgress, terminal_progress
from s2q.ranks import Ranks, joined, own_device, speaks
from s2q.run import quantize

PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tiny import CALL, PROMPTS, cheap
from s2q.models.pipelines import open_pipeline
from s2q.run import quantize
pipeline, out, *changes = sys.argv[1:]
quantize(open_pipeline(pipeline, **CALL), cheap("s2q_vdit", "W4A6", *changes), Path(out), prompts=PROMPTS)
"""


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def launch(pipeline: Path, out: Path, *changes: str) -> None:
    """Two processes as torchrun starts them."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, pipeline, out, *changes],
            env=os.environ | place | {"RANK": str(rank), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


@pytest.fixture(scope="module")
def alone(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    quantize(open_pipeline(str(tiny_pipeline), **CALL), cheap("s2q_vdit", "W4A6"), out, prompts=PROMPTS)
    return folder_bytes(out)


def test_two_ranks_write_the_same_bytes_and_share_the_work(
    tiny_pipeline: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    launch(tiny_pipeline, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == alone


def test_what_a_dead_rank_left_undone_is_made_by_the_next_launch(
    tiny_pipeline: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    launch(tiny_pipeline, tmp_path / "out")
    work = tmp_path / "out.work"
    for path in (work / "blocks" / "block-0001.safetensors", work / "trajectories" / "prompt-0001.safetensors"):
        path.unlink()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    launch(tiny_pipeline, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == alone


def test_every_item_is_taken_by_exactly_one_rank() -> None:
    ranks = [Ranks(rank, 3) for rank in range(3)]
    assert all(sum(one.takes(item) for one in ranks) == 1 for item in range(20))
    assert [one.first for one in ranks] == [True, False, False]


def test_alone_without_a_launcher() -> None:
    with joined() as ranks:
        assert (ranks.rank, ranks.world) == (0, 1)
        ranks.wait()


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK, MASTER_ADDR, MASTER_PORT"), joined():
        pass


def test_one_process_speaks_and_each_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert speaks()
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not speaks()
    assert (own_device("cuda"), own_device("cuda:3"), own_device("cpu")) == ("cuda:1", "cuda:3", "cpu")
    assert isinstance(terminal_progress(), NoProgress)
