"""Eqs. 3, 6, 7 and 8 against computing them by hand."""

import pytest
import torch
from tiny import make_transformer

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
from s2q.models.pipelines import OpenPipeline


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


def test_patches_are_cut_as_the_models_own_embedding_cuts_them() -> None:
    embedding = make_transformer().patch_embed
    latents = normal(1, 3, 4, 4, 6)
    weight = embedding.proj.weight.flatten(1)
    ours = patch_tokens(latents, 2) @ weight.mT + embedding.proj.bias
    theirs = embedding.proj(latents.flatten(0, 1)).flatten(2).mT.reshape(1, 3 * 2 * 3, -1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_patching_loses_no_value() -> None:
    latents = normal(2, 3, 4, 4, 6)
    tokens = patch_tokens(latents, 2)
    assert tokens.shape == (2, 18, 16)
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
            tokens = patch_tokens(latents[step : step + 1], 2)[0]
        else:
            call = first_call(model, family, store.arguments(1, step, "cond"))
            tokens = call.states["hidden_states"][0]
        assert value == pytest.approx(float(torch.linalg.matrix_norm(tokens.double(), ord=2) ** 2), rel=1e-4)


def test_moving_casts_floats_and_leaves_the_rest() -> None:
    nested = {"a": torch.ones(2), "b": (torch.tensor(3), None), "c": {"d": torch.tensor([True])}, "e": "text"}
    moved = to_device(nested, "cpu", torch.bfloat16)
    assert moved["a"].dtype == torch.bfloat16
    assert moved["b"][0].dtype == torch.int64
    assert moved["b"][1] is None
    assert moved["c"]["d"].dtype == torch.bool
    assert moved["e"] == "text"
