"""Publishing: what is damaged, foreign or private stays here, and whoever reads the card knows what it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from tiny import folder_bytes, tampered

from s2q.checkpoint import PROVENANCE_NAME, CheckpointError
from s2q.cli_push import push as command
from s2q.hub import REPORT_NAME, HubError, prepare_upload, push
from s2q.models.pipelines import load_transformer
from s2q.run import Quantized

REPO = "someone/tiny-w4a6"


class StandIn:
    """Takes what `HfApi` takes, and keeps it; or fails where it is told to."""

    def __init__(self, fails: dict[str, Exception] | None = None):
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.committed_to: str | None = None
        self.renamed: dict[str, str] = {}
        self._fails = fails or {}

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self._fails:
            raise self._fails[name]

    def whoami(self) -> dict[str, str]:
        self._called("whoami")
        return {"name": "someone"}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool, repo_type: str) -> RepoUrl:
        self._called("create_repo")
        assert (exist_ok, repo_type) == (True, "model")
        self.private = private
        return RepoUrl(f"https://huggingface.co/{self.renamed.get(repo_id, repo_id)}")

    def create_commit(self, repo_id: str, operations: list, *, commit_message: str, repo_type: str) -> None:
        self._called("create_commit")
        self.committed_to = repo_id
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def folder(quantized: Callable[..., Quantized], tmp_path: Path) -> Path:
    """A quantized transformer, which tests may change."""
    return shutil.copytree(quantized().folder, tmp_path / "results" / "out")


def report_of(folder: Path) -> dict[str, Any]:
    noted = json.loads((folder / PROVENANCE_NAME).read_text())
    fidelity = {"psnr_db": 38.125, "ssim": 0.975, "latent_relative_mse": 0.0125, "motion_ratio": 1.03125, "clips": 16}
    return {
        "recipe": noted["recipe"]["name"],
        "bits": noted["recipe"]["bits"],
        "seed": noted["seed"],
        "storage": noted["storage"],
        "fidelity": fidelity,
        "learned": {"measures": {"CLIPSIM": {"float": 0.25, "quantized": 0.125}}},
        "vbench": {"scores": {"float": {"color": 80.0}, "quantized": {"color": 79.0, "scene": 40.0}}},
    }


def test_what_is_published_loads_and_holds_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("private")
    hub = StandIn()
    assert push(prepare_upload(folder), REPO, hub, private=True) == f"https://huggingface.co/{REPO}"
    assert hub.private is True
    assert hub.files.keys() == {"config.json", "diffusion_pytorch_model.safetensors", PROVENANCE_NAME, "README.md"}
    for name, content in hub.files.items():
        path = tmp_path / "cloned" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    import torch

    model = load_transformer(tmp_path / "cloned", torch.float32)
    assert model.is_quantized


def test_no_path_of_this_machine_is_published_and_the_folder_is_not_changed(folder: Path) -> None:
    before = folder_bytes(folder)
    assert b"/pipeline" in before[PROVENANCE_NAME], "the folder itself tells where the pipeline stood"
    hub = StandIn()
    push(prepare_upload(folder), REPO, hub)
    assert json.loads(hub.files[PROVENANCE_NAME])["pipeline"] == "pipeline"
    assert not any(str(folder.parent.parent.parent).encode() in content for content in hub.files.values())
    assert folder_bytes(folder) == before


def test_the_original_on_the_hub_can_be_named(folder: Path) -> None:
    hub = StandIn()
    push(prepare_upload(folder, pipeline="someone/Video-1B"), REPO, hub)
    card = hub.files["README.md"].decode()
    assert ModelCard(card).data.base_model == "someone/Video-1B"
    assert yaml.safe_load(card.split("---\n")[1])["base_model_relation"] == "quantized"
    assert 'CogVideoXPipeline.from_pretrained("someone/Video-1B"' in card
    assert json.loads(hub.files[PROVENANCE_NAME])["pipeline"] == "someone/Video-1B"
    with pytest.raises(HubError, match="hub id"):
        prepare_upload(folder, pipeline="/home/me/model")


@pytest.mark.parametrize("place", ["out.evaluation", ".", "elsewhere"])
def test_the_figures_of_the_report_stand_in_the_card(place: str, folder: Path) -> None:
    where = folder.parent / place
    where.mkdir(exist_ok=True)
    (where / REPORT_NAME).write_text(json.dumps(report_of(folder)))
    card = prepare_upload(folder, report=where if place == "elsewhere" else None).files["README.md"].decode()
    for said in ("16 clips", "38.12 dB", "0.9750", "0.01250", "1.031", "0.2500 → 0.1250", "80.00 → 79.00", "40.00"):
        assert said in card, said
    assert "Nothing about quality" not in card


def test_the_report_of_something_else_is_not_told(folder: Path) -> None:
    other = report_of(folder) | {"seed": 7}
    (folder.parent / REPORT_NAME).write_text(json.dumps(other))
    assert prepare_upload(folder).files["README.md"] == folder / "README.md"
    with pytest.raises(HubError, match="about"):
        prepare_upload(folder, report=folder.parent)


def test_a_card_that_was_edited_goes_as_it_is(folder: Path) -> None:
    (folder / "README.md").write_text("my own words")
    hub = StandIn()
    push(prepare_upload(folder), REPO, hub)
    assert hub.files["README.md"] == b"my own words"


def test_nothing_damaged_or_foreign_is_published(folder: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    def flip(tensors: dict) -> None:
        tensors["transformer_blocks.0.attn1.to_q.weight_packed"][0, 0] ^= 1

    with pytest.raises(CheckpointError, match="checksum"):
        prepare_upload(tampered(folder, tmp_path / "damaged", tensors=flip))
    with pytest.raises(CheckpointError, match="not quantized"):
        prepare_upload(tiny_pipeline / "transformer")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        prepare_upload(tmp_path / "none")
    (folder / PROVENANCE_NAME).unlink()
    with pytest.raises(HubError, match="how it was made"):
        prepare_upload(folder)


def refusal(status: int) -> HfHubHTTPError:
    class Response:
        status_code = status
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    return HfHubHTTPError(f"{status} from\n\nthe hub", response=Response())


FAILURES = {
    "no login": ("whoami", LocalTokenNotFoundError("none"), "hf auth login"),
    "token not valid": ("whoami", refusal(401), "not valid, or may not write"),
    "no right": ("create_repo", refusal(403), "may not write there"),
    "server": ("create_commit", refusal(500), "500 from the hub"),
    "offline": ("whoami", OfflineModeIsEnabled("offline"), "cannot be reached"),
    "no network": ("whoami", HfHubHTTPError.__bases__[0]("no route"), "cannot be reached"),
    "too slow": ("create_commit", TimeoutError("too slow"), "cannot be reached"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_hub_that_does_not_take_it_is_one_clear_error(case: str, folder: Path) -> None:
    where, error, said = FAILURES[case]
    hub = StandIn({where: error})
    with pytest.raises(HubError, match=said) as caught:
        push(prepare_upload(folder), REPO, hub)
    assert "\n" not in str(caught.value)
    assert hub.files == {}


def test_the_command_says_what_it_uploads_and_a_dry_run_uploads_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hub = StandIn()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    command(folder, REPO, dry_run=True, json_file=tmp_path / "dry.json")
    assert hub.calls == []
    assert capsys.readouterr().out.endswith("\nnothing was uploaded: --dry-run\n")
    command(folder, REPO, private=True, json_file=tmp_path / "push.json")
    assert hub.private is True
    said = capsys.readouterr().out
    assert "4 files" in said
    assert f"published: https://huggingface.co/{REPO}" in said
    dry, done = (json.loads((tmp_path / name).read_text()) for name in ("dry.json", "push.json"))
    assert dry["bytes"] == done["bytes"] == sum(len(content) for content in hub.files.values())
    assert (dry["url"], done["url"]) == (None, f"https://huggingface.co/{REPO}")


@pytest.mark.parametrize(
    ("repo_id", "said"), [("demo", "such as me/demo"), ("not/a/repo", "OWNER/NAME"), ("a b/c", "a b")]
)
def test_what_is_no_owner_and_name_is_refused_dry_or_not(repo_id: str, said: str, folder: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(HubError, match=said) as caught:
            command(folder, repo_id, dry_run=dry_run)
        assert "\n" not in str(caught.value)
    hub = StandIn()
    with pytest.raises(HubError, match=said):
        push(prepare_upload(folder), repo_id, hub)
    assert hub.calls == []


def test_the_commit_goes_where_the_hub_says_that_the_repository_is(folder: Path) -> None:
    """It may have been renamed, and the hub answers with its name of today."""
    hub = StandIn()
    hub.renamed = {REPO: "someone/other"}
    assert push(prepare_upload(folder), REPO, hub) == "https://huggingface.co/someone/other"
    assert hub.committed_to == "someone/other"
