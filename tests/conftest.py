"""What tests share: a tiny pipeline, its trajectories, and transformers quantized from it, each made once a session."""

import environment  # noqa: F401

# isort: split
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import CogVideoXTransformer3DModel
from tiny import CALL, PROMPTS, cheap, make_pipeline, make_transformer
from tiny_families import FAMILIES, TinyFamily

from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.pipelines import OpenPipeline, open_pipeline
from s2q.reproducible import ask_for_the_same_bits
from s2q.run import Quantized, quantize
from s2q.runtime.native import library

ask_for_the_same_bits()  # as the command line does; MKL reads it at its first product


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny pipeline; tests must not change it."""
    return make_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(params=library.instruction_sets())
def each_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set of this machine in turn, the native code demanded."""
    monkeypatch.setenv("S2Q_BACKEND", "native")
    library.use(request.param)
    yield request.param
    library.use(None)


@pytest.fixture
def transformer() -> CogVideoXTransformer3DModel:
    """A fresh tiny transformer."""
    return make_transformer()


@pytest.fixture
def opened(tiny_pipeline: Path) -> OpenPipeline:
    """The tiny pipeline, freshly loaded."""
    return open_pipeline(str(tiny_pipeline), **CALL)


@pytest.fixture(scope="session")
def family_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family → folder of its tiny pipeline; tests must not change them."""
    parent = tmp_path_factory.mktemp("families")
    return {name: family.make_pipeline(parent / name) for name, family in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def tiny_family(request: pytest.FixtureRequest) -> TinyFamily:
    """Each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture
def open_family(family_pipelines: dict[str, Path]) -> Callable[..., OpenPipeline]:
    """(family, settings of `open_pipeline`) → its tiny pipeline, freshly loaded."""

    def open_it(name: str, **settings: Any) -> OpenPipeline:
        return open_pipeline(str(family_pipelines[name]), **(dict(FAMILIES[name].call) | settings))

    return open_it


@pytest.fixture(scope="session")
def quantized(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Quantized]:
    """(recipe, bits) → the tiny pipeline quantized so; made when first asked for; tests must not change it."""
    made: dict[tuple[str, str], Quantized] = {}

    def make(name: str = "s2q_vdit", bits: str = "W4A6") -> Quantized:
        if (name, bits) not in made:
            out = tmp_path_factory.mktemp("quantized") / f"{name}-{bits}"
            source = open_pipeline(str(tiny_pipeline), **CALL)
            made[name, bits] = quantize(source, cheap(name, bits), out, prompts=PROMPTS)
        return made[name, bits]

    return make


@pytest.fixture
def store(opened: OpenPipeline, quantized: Callable[..., Quantized]) -> TrajectoryStore:
    """The trajectories of both prompts, as quantizing recorded them with seed 0."""
    folder = quantized().workspace.folder / "trajectories"
    return TrajectoryStore(folder, len(PROMPTS), opened.family.latents, opened.family.timestep)
