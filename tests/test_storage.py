"""Files are whole or absent, whatever happens while they are written."""

import json
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2q.storage import (
    derived_seed,
    file_digest,
    fingerprint,
    read_json,
    read_metadata,
    replacing,
    write_json,
    write_tensors,
)


@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_fails_leaves_what_was_there(before: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if before:
        path.write_text(before)

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert (path.read_text() if before else None) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["file"] if before else [])


def test_nothing_stands_in_its_place_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent, "another file system could not be moved from in one step"
    assert path.read_text() == "half"


def test_values_that_json_does_not_have_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_in_any_script(tmp_path: Path) -> None:
    data = {"prompt": "eine weiße Möwe · 白い鳥", "scores": [1.5, None, True]}
    write_json(tmp_path / "file.json", data)
    assert read_json(tmp_path / "file.json") == data
    assert "白い鳥" in (tmp_path / "file.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"\x00" * 50])
def test_json_cut_short_counts_as_absent(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    assert read_json(tmp_path / "file.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_tensors_cut_short_anywhere_count_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"x": torch.arange(6.0).view(2, 3).mT}, {"prompt": "möwe"})
    assert read_metadata(path) == {"prompt": "möwe"}
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read_metadata(path) is None, length
    assert read_metadata(tmp_path / "none.safetensors") is None


def test_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, {"k": 1})
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_fingerprint_does_not_depend_on_order_but_on_content(data: dict) -> None:
    assert fingerprint(dict(reversed(data.items()))) == fingerprint(data)
    assert fingerprint(data | {"more": 1}) != fingerprint(data | {"more": 2})
    assert fingerprint(json.loads(json.dumps(data))) == fingerprint(data)


def test_seeds_differ_by_every_part_and_fit_a_generator() -> None:
    seeds = {derived_seed(*parts) for parts in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0), (0, "a0")]}
    assert len(seeds) == 5
    assert derived_seed(0, "a") == derived_seed(0, "a")
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, stop, seen = tmp_path / "file.json", threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(read_json(path))

    write_json(path, [0] * 5000)
    reader = threading.Thread(target=read)
    reader.start()
    for value in range(30):
        write_json(path, [value] * 5000)
    stop.set()
    reader.join()
    assert seen
    assert all(data is not None and len(set(data)) == 1 and len(data) == 5000 for data in seen)
