"""Pipelines of words alone, and with images, videos and controls: recorded, quantized, loaded, and a clip made."""

import warnings
from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, calls_by_step, cheap
from tiny_media import MEDIA_PIPELINES, with_media
from tiny_pipelines import PIPELINES, with_stand_ins

from s2q.assessment import evaluate
from s2q.calibration.calls import same
from s2q.calibration.recording import record_trajectories
from s2q.models.geometry import latent_size
from s2q.models.pipelines import load_transformer
from s2q.planning import plan
from s2q.progress import NoProgress
from s2q.run import quantize
from s2q.storage import derived_seed

ALL = PIPELINES | {f"media-{name}": made for name, made in MEDIA_PIPELINES.items()}
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers about itself


@pytest.fixture(scope="module", params=ALL)
def named_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Each pipeline in turn, and its folder."""
    with warnings.catch_warnings(action="ignore"):
        return request.param, ALL[request.param].save(tmp_path_factory.mktemp("made") / request.param)


@pytest.fixture(autouse=True)
def stand_ins(named_folder: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In every test."""
    with_stand_ins(ALL[named_folder[0]].class_name, monkeypatch)


@pytest.fixture
def prompts(named_folder: tuple[str, Path], tmp_path: Path) -> list[str]:
    """Two prompts, with the files that the pipeline wants."""
    return with_media(PROMPTS, ALL[named_folder[0]].media, tmp_path)


def test_it_is_quantized_loaded_and_compared_with_its_twin(
    named_folder: tuple[str, Path], prompts: list[str], tmp_path: Path
) -> None:
    name, folder = named_folder
    opened = ALL[name].open(folder)
    made = quantize(opened, cheap("s2q_vdit", "W4A6"), tmp_path / "out", prompts=prompts)
    model = load_transformer(made.folder, torch.float32)
    opened = ALL[name].open(folder)
    with torch.no_grad():
        done = evaluate(opened, model, made.folder, tmp_path / "report", prompts=prompts[:1])
    assert 0 < done.report["fidelity"]["latent_relative_mse"] < 1
    assert done.twins[0].candidate.std() > 0
    planned = plan(folder, cheap("s2q_vdit", "W4A6"), {"num_frames": 5} | opened.call)
    assert (planned.float_bytes, planned.quantized_bytes) == (made.storage.float_bytes, made.storage.quantized_bytes)


@torch.no_grad()
def test_recorded_calls_are_those_of_the_pipeline_bit_for_bit(
    named_folder: tuple[str, Path], prompts: list[str], tmp_path: Path
) -> None:
    name, folder = named_folder
    opened = ALL[name].open(folder)
    store = record_trajectories(opened, prompts[:1], 0, tmp_path, NoProgress())
    steps, final = calls_by_step(opened, prompts[0], derived_seed(0, "trajectory", 0))
    assert latent_size(opened.family, steps[0][0]) == ALL[name].latent
    for step, calls in enumerate(steps):
        stacked = len(calls) > store.calls(0)
        places = [("cond", 0), ("uncond", 0)] if stacked else [("both", number) for number in range(len(calls))]
        for (branch, number), call in zip(places, calls, strict=True):
            # Their values, not what is made of them: that may differ in its last bits with where they lie in memory.
            stored = store.arguments(0, step, branch, number)
            assert stored.keys() == call.keys()
            assert [name for name in call if not same(stored[name], call[name])] == []
    assert torch.equal(store.latents(0)[-1], final[0])
