"""A hub id: nothing large is fetched before it is wanted, and what cannot be had is said in one line with what to do."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import FakeHub, fake_hub, use_endpoint
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from s2q.models.fetching import local_folder
from s2q.models.pipelines import PipelineError, locate, locate_configurations

REPO = "someone/Tiny2.1-1.3B-Diffusers"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache", monkeypatch) as made:
        made.folders[REPO] = Path(shutil.copytree(tiny_pipeline, tmp_path / "remote"))
        yield made


def weights(names: list[str] | set[str]) -> set[str]:
    return {name for name in names if name.endswith((".safetensors", ".bin"))}


def said_of(source: str, capfd: pytest.CaptureFixture, whole: bool = True) -> str:
    """The one line that is said, and nothing is printed beside it."""
    with pytest.raises(PipelineError) as caught:
        locate(source) if whole else locate_configurations(source)
    said = str(caught.value)
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")
    return said


def test_of_a_hub_id_planning_fetches_no_weights_and_draws_no_bars(hub: FakeHub, capfd: pytest.CaptureFixture) -> None:
    enable_progress_bars()  # other tests open pipelines as the command line does
    folder, there = locate_configurations(REPO)
    assert capfd.readouterr() == ("", "")
    assert not are_progress_bars_disabled(), "weights have theirs"
    assert there == ["transformer"]
    assert (folder / "text_encoder" / "config.json").is_file()
    assert hub.fetched
    assert not weights(hub.fetched)


def test_opening_then_fetches_the_weights_and_only_what_is_missing(hub: FakeHub) -> None:
    locate_configurations(REPO)
    before = set(hub.fetched)
    hub.fetched.clear()
    folder = locate(REPO)
    assert {"transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"} <= weights(
        hub.fetched
    )
    assert not before & set(hub.fetched)
    hub.fetched.clear()
    lost = folder / "vae" / "diffusion_pytorch_model.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    locate(REPO)
    assert hub.fetched == ["vae/diffusion_pytorch_model.safetensors"]


def test_a_pipeline_that_s2q_does_not_take_is_refused_before_its_weights_are_fetched(hub: FakeHub) -> None:
    index = hub.folders[REPO] / "model_index.json"
    index.write_text(index.read_text().replace('"CogVideoXPipeline"', '"CogView4Pipeline"'))
    with pytest.raises(PipelineError, match="makes no video"):
        locate(REPO)
    assert not weights(hub.fetched)


@pytest.mark.parametrize("how", ["no network", "HF_HUB_OFFLINE"])
def test_what_is_fetched_is_used_without_network(
    how: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    folder = locate(REPO)
    hub.fetched.clear()
    disconnect(how, monkeypatch)
    capfd.readouterr()
    assert locate(REPO) == folder
    assert locate_configurations(REPO)[0] == folder
    assert capfd.readouterr() == ("", "")


def disconnect(how: str, patch: pytest.MonkeyPatch) -> None:
    if how == "HF_HUB_OFFLINE":
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        use_endpoint(patch, NOWHERE)


OFFLINE = {"no network": r"hub cannot be reached \(ConnectError\).*folder", "HF_HUB_OFFLINE": "HF_HUB_OFFLINE forbids"}


@pytest.mark.parametrize("how", OFFLINE)
@pytest.mark.parametrize("cached", ["nothing", "configurations"])
def test_no_network_is_said_as_that(
    cached: str, how: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    if cached == "configurations":
        locate_configurations(REPO)
    disconnect(how, monkeypatch)
    capfd.readouterr()
    said = said_of(REPO, capfd)
    assert said.startswith(f"{REPO} is not whole in this machine's cache")
    assert re.search(OFFLINE[how], said), said


def test_absent_and_gated_are_told_apart(hub: FakeHub, capfd: pytest.CaptureFixture) -> None:
    for whole in (False, True):
        said = said_of("someone/absent", capfd, whole)
        assert "not on the hub: check the spelling; if it is private, log in with `hf auth login`" in said
    hub.gated.add(REPO)
    for whole in (False, True):
        said = said_of(REPO, capfd, whole)
        assert f"/{REPO}, then log in with `hf auth login`" in said
        assert "gated: accept its terms" in said


@pytest.mark.parametrize(("status", "advice"), [(401, "log in again"), (500, "try again")])
def test_a_hub_that_refuses_is_said_with_its_status(
    status: int, advice: str, hub: FakeHub, capfd: pytest.CaptureFixture
) -> None:
    hub.status = status
    said = said_of(REPO, capfd)
    assert advice in said
    assert f"status {status}" in said


def test_a_repository_that_is_no_pipeline_is_refused(hub: FakeHub, capfd: pytest.CaptureFixture) -> None:
    (hub.folders[REPO] / "model_index.json").unlink()
    assert "no model_index.json" in said_of(REPO, capfd)


@pytest.mark.parametrize("name", ["Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "THUDM/CogVideoX1.5-5B", "THUDM/CogVideoX-2b"])
def test_names_on_the_hub_may_have_dots(name: str) -> None:
    assert local_folder(name) is None


@pytest.mark.parametrize("source", ["models/wan.safetensors", "out/clip.mp4", "someone/two words"])
def test_a_file_that_is_missing_and_no_name_of_the_hub_are_refused_without_asking_it(source: str, hub: FakeHub) -> None:
    hub.status = 500
    with pytest.raises(PipelineError, match=r"is not a folder|is no hub id"):
        locate(source)
