"""A work folder belongs to one set of settings, and to nobody else's files."""

from pathlib import Path

import pytest
import torch
from tiny import folder_bytes

from s2q.package import OutputError, check_output
from s2q.quantization.block import CalibratedBlock
from s2q.storage import write_json
from s2q.workspace import Workspace, WorkspaceError

SETTINGS = {"recipe": {"name": "rtn"}, "seed": 0, "prompts": ["a"]}


def test_the_same_settings_go_on_where_they_were(tmp_path: Path) -> None:
    Workspace.open(tmp_path / "work", SETTINGS)
    (tmp_path / "work" / "done.txt").write_text("done")
    again = Workspace.open(tmp_path / "work", dict(reversed(SETTINGS.items())))
    assert (again.folder / "done.txt").read_text() == "done"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 1}, "seed"), ({"recipe": {"name": "gptq"}}, "recipe"), ({"device": "cuda"}, "device")],
)
def test_other_settings_are_refused_by_name_and_the_folder_is_untouched(
    change: dict, said: str, tmp_path: Path
) -> None:
    Workspace.open(tmp_path / "work", SETTINGS)
    (tmp_path / "work" / ".half.1.part").write_text("of the other run, which may be alive")
    before = folder_bytes(tmp_path)
    with pytest.raises(WorkspaceError, match=rf"\({said} differ\)"):
        Workspace.open(tmp_path / "work", SETTINGS | change)
    assert folder_bytes(tmp_path) == before


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = folder_bytes(tmp_path)
    with pytest.raises(WorkspaceError, match=r"thesis\.txt"):
        Workspace.open(tmp_path, SETTINGS)
    assert folder_bytes(tmp_path) == before


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    Workspace.open(tmp_path, SETTINGS)
    assert (tmp_path / "settings.json").is_file()


def test_settings_cut_short_by_a_crash_do_not_hand_the_folder_to_anyone(tmp_path: Path) -> None:
    Workspace.open(tmp_path, SETTINGS)
    (tmp_path / "settings.json").write_text('{"recipe"')
    (tmp_path / "blocks").mkdir()
    with pytest.raises(WorkspaceError):
        Workspace.open(tmp_path, SETTINGS | {"seed": 1})


def test_half_written_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    Workspace.open(tmp_path, SETTINGS)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / ".block-0000.safetensors.123.part").write_text("half")
    Workspace.open(tmp_path, SETTINGS)
    assert not list(tmp_path.rglob("*.part"))


def test_a_block_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, SETTINGS)
    tensors = {
        "attn1.to_out.0": {"weight_scale": torch.rand(3, 1)},
        "ff.net.2": {"weight_packed": torch.ones(2, 2).int()},
    }
    groups = [("attn1.to_q", "attn1.to_k"), ("ff.net.2",)]
    assert workspace.block_metadata(3) is None
    workspace.write_block(3, "blocks.3", groups, CalibratedBlock(tensors, 0.2, 0.1, 5.0))
    read = workspace.read_block(3)
    assert read.keys() == tensors.keys()
    for name, named in tensors.items():
        assert all(torch.equal(read[name][key], tensor) for key, tensor in named.items())
    metadata = workspace.block_metadata(3)
    assert (metadata["name"], metadata["before"], metadata["after"]) == ("blocks.3", 0.2, 0.1)
    assert [tuple(group) for group in metadata["groups"]] == groups


def test_removing_takes_the_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "work", SETTINGS)
    (tmp_path / "beside.txt").write_text("stays")
    workspace.remove()
    workspace.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["beside.txt"]


class TestOutput:
    """An output folder is only ever written where nothing stands."""

    def test_nothing_there_or_nothing_in_it_is_free(self, tmp_path: Path) -> None:
        assert check_output(tmp_path / "new", "id") is False
        assert check_output(tmp_path, "id") is False

    def test_our_own_result_is_known_again(self, tmp_path: Path) -> None:
        write_json(tmp_path / "s2q_provenance.json", {"settings": "id"})
        assert check_output(tmp_path, "id") is True
        with pytest.raises(OutputError, match="another s2q run"):
            check_output(tmp_path, "other")

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_anything_else_is_refused(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "out"
        if kind == "folder":
            path.mkdir()
            (path / "thesis.txt").touch()
        else:
            path.touch()
        with pytest.raises(OutputError, match="something else"):
            check_output(path, "id")
