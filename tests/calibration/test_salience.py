"""Eqs. 3, 6, 7 and 8 against computing them by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, make_transformer
from tiny_families import make_hunyuan, make_wan
from torch import nn

from s2q.calibration.recording import record_trajectories
from s2q.calibration.salience import (
    combine,
    diffusion_salience,
    min_max,
    patch_tokens,
    quantization_salience,
    salience_of_prompt,
    to_device,
)
from s2q.calibration.trajectory import TrajectoryStore
from s2q.models.blocks import first_call
from s2q.models.family import patch_of
from s2q.models.pipelines import OpenPipeline
from s2q.progress import NoProgress


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_diffusion_salience_is_how_far_each_step_moves() -> None:
    x = normal(5, 2, 3, 4, 4)
    expected = [float(((x[t] - x[t + 1]) ** 2).sum() / (x[t] ** 2).sum()) for t in range(4)]
    assert diffusion_salience(x).tolist() == pytest.approx(expected, rel=1e-5)


def test_diffusion_salience_of_a_known_move() -> None:
    x = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert diffusion_salience(x).tolist() == [0.25, 0.0]


def test_quantization_salience_is_the_spectral_norm_of_the_gram_matrix() -> None:
    tokens = normal(3, 20, 6)
    expected = [float(torch.linalg.matrix_norm((x.mT @ x).double(), ord=2)) for x in tokens]
    assert quantization_salience(tokens).tolist() == pytest.approx(expected, rel=1e-5)


def test_min_max_spans_the_whole_pool_and_not_each_prompt() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert min_max(values).tolist() == [[0.0, 0.25], [0.5, 1.0]]
    assert torch.equal(min_max(torch.full((2, 2), 3.0)), torch.ones(2, 2))


def test_both_saliences_must_be_high() -> None:
    diffusion = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    quantization = torch.tensor([[8.0, 8.0, 4.0, 0.0]])
    assert combine(diffusion, quantization).tolist() == [[0.0, 0.25, 0.25, 0.0]]


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "embedding", "layout"),
    [
        (make_transformer(), "patch_embed", "FChw"),
        (make_wan(), "patch_embedding", "CFhw"),
        (make_wan(patch_size=(2, 1, 3)), "patch_embedding", "CFhw"),
        (make_hunyuan(), "x_embedder", "CFhw"),
        (make_hunyuan(patch_size_t=2), "x_embedder", "CFhw"),
    ],
    ids=["cogvideox", "wan", "wan-uneven", "hunyuan", "hunyuan-temporal"],
)
def test_patches_are_cut_as_the_models_own_embedding_cuts_them(model: nn.Module, embedding: str, layout: str) -> None:
    module = model.get_submodule(embedding)
    projection = getattr(module, "proj", module)
    latents = normal(1, 4, 2, 4, 6) if layout == "CFhw" else normal(1, 2, 4, 4, 6)
    ours = patch_tokens(latents, patch_of(model.config), layout) @ projection.weight.flatten(1).mT + projection.bias
    theirs = projection(latents if layout == "CFhw" else latents.flatten(0, 1))
    theirs = theirs.flatten(2).mT.reshape(1, -1, theirs.shape[1])
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("layout", ["FChw", "CFhw"])
def test_patching_loses_no_value(layout: str) -> None:
    latents = normal(2, 3, 4, 4, 6)
    tokens = patch_tokens(latents, (1, 2, 2), layout)
    assert tokens.shape == ((2, 18, 16) if layout == "FChw" else (2, 24, 12))
    assert torch.equal(tokens.flatten().sort().values, latents.flatten().sort().values)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["latents", "hidden_states"])
def test_salience_of_a_prompt_is_that_of_its_recorded_steps(
    kind: str, opened: OpenPipeline, store: TrajectoryStore
) -> None:
    model, family = opened.pipe.transformer, opened.family
    diffusion, quantization = salience_of_prompt(store, 1, model, family, kind)
    latents = store.latents(1)
    assert torch.equal(diffusion, diffusion_salience(latents))
    for step, value in enumerate(quantization.tolist()):
        if kind == "latents":
            tokens = patch_tokens(latents[step : step + 1], (1, 2, 2), "FChw")[0]
        else:
            call = first_call(model, family, store.arguments(1, step, "cond"))
            tokens = call.states["hidden_states"][0]
        assert value == pytest.approx(float(torch.linalg.matrix_norm(tokens.double(), ord=2) ** 2), rel=1e-4)


def test_moving_changes_no_dtype() -> None:
    nested = {"a": torch.ones(2), "b": (torch.tensor(3), None), "c": {"d": torch.tensor([True])}, "e": "text"}
    moved = to_device(nested, "meta")
    assert (moved["a"].dtype, moved["a"].device.type) == (torch.float32, "meta")
    assert (moved["b"][0].dtype, moved["b"][0].device.type) == (torch.int64, "meta")
    assert moved["b"][1] is None
    assert moved["c"]["d"].device.type == "meta"
    assert moved["e"] == "text"


@pytest.mark.parametrize("kind", ["latents", "hidden_states"])
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_salience_of_other_layouts_is_that_of_what_their_embedding_sees(
    name: str, kind: str, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    opened = open_family(name)
    store = record_trajectories(opened, PROMPTS[:1], 0, tmp_path, NoProgress())
    model, family = opened.pipe.transformer, opened.family
    diffusion, quantization = salience_of_prompt(store, 0, model, family, kind)
    assert torch.equal(diffusion, diffusion_salience(store.latents(0)))
    embedding = model.patch_embedding if name == "wan" else model.x_embedder.proj
    for step, value in enumerate(quantization.tolist()):
        x = store.latents(0)[step : step + 1]
        with torch.no_grad():
            tokens = embedding(x) if kind == "hidden_states" else nn.functional.unfold(x.flatten(1, 2), 2, stride=2)
        tokens = tokens[0].flatten(1).mT
        if kind == "latents":  # unfold took the frames for channels: [h·w/4, C·F·4] → [F·h·w/4, C·4]
            tokens = tokens.reshape(4, 4, 2, 4).permute(2, 0, 1, 3).reshape(8, 16)
        assert value == pytest.approx(float(torch.linalg.matrix_norm(tokens.double(), ord=2) ** 2), rel=1e-4)
