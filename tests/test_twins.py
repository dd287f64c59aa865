"""Twins start from the same noise, differ by the transformer alone, and are made once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import PROMPTS, STEPS, make_transformer

from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.progress import NoProgress
from s2q.run import Quantized
from s2q.twins import Twin, generate, make_twins


def make(opened: OpenPipeline, candidate: torch.nn.Module, folder: Path, seed: int = 0, prompts=PROMPTS) -> list[Twin]:
    return make_twins(opened, candidate, prompts, seed, folder, NoProgress())


def test_a_transformer_is_its_own_perfect_twin(opened: OpenPipeline, tmp_path: Path) -> None:
    for twin in make(opened, make_transformer(), tmp_path):
        assert np.array_equal(twin.reference, twin.candidate)
        assert np.array_equal(twin.reference_latents, twin.candidate_latents)
        assert twin.step_errors == [0.0] * STEPS


def test_a_quantized_twin_drifts_from_its_reference(
    opened: OpenPipeline, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    full = opened.pipe.transformer
    twins = make(opened, load_transformer(quantized().folder, torch.float32), tmp_path)
    assert opened.pipe.transformer is full, "the pipeline is given back as it was"
    assert [twin.prompt for twin in twins] == list(PROMPTS)
    assert [twin.seed for twin in twins] == [0, 1]
    for twin in twins:
        assert twin.reference.dtype == np.uint8
        assert twin.reference.shape == twin.candidate.shape
        assert all(0 < error < 1 for error in twin.step_errors)
        difference, power = twin.reference_latents - twin.candidate_latents, twin.reference_latents
        last = float((difference**2).sum() / (power**2).sum())
        assert twin.step_errors[-1] == pytest.approx(last, rel=1e-4)


def test_pairs_that_are_there_are_read_and_not_made_again(opened: OpenPipeline, tmp_path: Path) -> None:
    first = make(opened, make_transformer(), tmp_path)
    opened.pipe = None  # anything that tries to generate fails
    again = make(opened, make_transformer(), tmp_path)
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.reference, two.reference)
        assert (one.prompt, one.seed, one.step_errors) == (two.prompt, two.seed, two.step_errors)


@pytest.mark.parametrize("change", ["seed", "prompt", "cut short"])
def test_pairs_of_something_else_are_not_passed_off_as_these(change: str, opened: OpenPipeline, tmp_path: Path) -> None:
    old = make(opened, make_transformer(), tmp_path, prompts=PROMPTS[:1])[0]
    before = old.reference.copy()  # `old` is mapped from the file that is about to be cut
    if change == "cut short":
        path = next(tmp_path.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-10])
    prompts = PROMPTS[1:] if change == "prompt" else PROMPTS[:1]
    new = make(opened, make_transformer(), tmp_path, seed=int(change == "seed"), prompts=prompts)[0]
    assert new.prompt == prompts[0]
    assert np.array_equal(new.reference, before) == (change == "cut short")


def test_the_pipeline_is_given_back_even_after_an_error(opened: OpenPipeline, tmp_path: Path) -> None:
    full, broken = opened.pipe.transformer, make_transformer()
    broken.forward = None
    with pytest.raises(TypeError):
        make(opened, broken, tmp_path)
    assert opened.pipe.transformer is full
    assert not list(tmp_path.iterdir())


def test_same_seed_gives_the_same_clip_and_another_another(opened: OpenPipeline) -> None:
    one, again, other = (generate(opened, PROMPTS[0], seed) for seed in (3, 3, 4))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_every_step_is_told(opened: OpenPipeline) -> None:
    seen: list[torch.Tensor] = []
    generate(opened, PROMPTS[0], 0, seen.append)
    assert len(seen) == STEPS
