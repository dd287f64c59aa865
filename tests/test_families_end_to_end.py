"""Every family through the whole way: quantize its tiny pipeline, load it with plain diffusers, generate, compare."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from tiny import PROMPTS, calls_by_step, cheap, simulate
from tiny_families import FAMILIES
from torch import nn

from s2q.assessment import _token_figure, evaluate
from s2q.checkpoint import PROVENANCE_NAME
from s2q.models import resolve
from s2q.models.pipelines import OpenPipeline, default_call, open_pipeline
from s2q.planning import plan
from s2q.quantization.tokens import received_by_block, token_weights
from s2q.recipes import get_recipe
from s2q.run import Quantized, quantize
from s2q.runtime.linear import QuantLinear
from s2q.twins import Twin, generate

OTHERS = [name for name in FAMILIES if name != "cogvideox"]  # which has tests of its own
Make = Callable[[str, str], Quantized]


@pytest.fixture(scope="module")
def made(family_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """(family, recipe) → its tiny pipeline quantized to W4A6, made when first asked for."""
    done: dict[tuple[str, str], Quantized] = {}

    def make(name: str, recipe: str) -> Quantized:
        if (name, recipe) not in done:
            opened = open_pipeline(str(family_pipelines[name]), **FAMILIES[name].call)
            out = tmp_path_factory.mktemp("made") / f"{name}-{recipe}"
            with torch.enable_grad():  # whoever asks first may be without
                done[name, recipe] = quantize(opened, cheap(recipe, "W4A6"), out, prompts=PROMPTS)
        return done[name, recipe]

    return make


def load(name: str, folder: Path) -> nn.Module:
    """As a user of plain diffusers does."""
    model_class = type(FAMILIES[name].make_transformer())
    return getattr(diffusers, model_class.__name__).from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["rtn", "gptq", "s2q_vdit"])
@pytest.mark.parametrize("name", OTHERS)
def test_it_is_saved_loaded_and_generates_what_its_simulation_does(
    name: str, recipe: str, made: Make, open_family: Callable[..., OpenPipeline]
) -> None:
    model, inputs = load(name, made(name, recipe).folder), FAMILIES[name].make_inputs()
    for block_name, block in resolve(model).blocks(model):
        for linear_name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                assert isinstance(module, QuantLinear), f"{block_name}.{linear_name} stayed in floating point"
    ours = model(**inputs, return_dict=False)[0]
    simulated = simulate(copy.deepcopy(model))(**inputs, return_dict=False)[0]
    full = FAMILIES[name].make_transformer()(**inputs, return_dict=False)[0]
    assert (ours - simulated).norm() < 1e-3 * simulated.norm()
    assert 0 < float((ours - full).norm() / full.norm()) < 0.3
    opened = open_family(name)
    opened.pipe.transformer = model
    clip = generate(opened, PROMPTS[0], seed=0)
    assert clip.shape == (5, 32, 32, 3)
    assert clip.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_linears_that_are_said_to_share_their_input_receive_the_same_tensor(name: str, made: Make) -> None:
    folder = made(name, "s2q_vdit").folder
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]["shared_inputs"]
    model, received = load(name, folder), {}
    for group in groups:
        for linear in group:
            model.get_submodule(linear).register_forward_pre_hook(
                lambda _, args, linear=linear: received.update({linear: args[0]})
            )
    model(**FAMILIES[name].make_inputs())
    family = resolve(model)
    per_block = [sum(len(group) > 1 for group in family.groups(block)) for _, block in family.blocks(model)]
    assert len(groups) == sum(per_block)
    for group in groups:
        assert len({id(received[linear]) for linear in group}) == 1, group
        assert len({id(model.get_submodule(linear).shared_input) for linear in group}) == 1, group


@pytest.mark.parametrize("name", OTHERS)
def test_every_block_was_calibrated_on_both_samples(name: str, made: Make) -> None:
    provenance = json.loads((made(name, "s2q_vdit").folder / PROVENANCE_NAME).read_text())
    model = FAMILIES[name].make_transformer()
    assert [block["name"] for block in provenance["blocks"]] == [block for block, _ in resolve(model).blocks(model)]
    assert all(0 < block["after"] < 1 for block in provenance["blocks"])
    assert len(provenance["samples"]) == 2


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_compared_with_its_twin_and_the_report_shows_its_tokens(
    name: str, made: Make, open_family: Callable[..., OpenPipeline], tmp_path: Path
) -> None:
    folder = made(name, "s2q_vdit").folder
    done = evaluate(open_family(name), load(name, folder), folder, tmp_path, prompts=PROMPTS[:1])
    assert 0 < done.report["fidelity"]["latent_relative_mse"] < 1
    assert not np.array_equal(done.twins[0].reference_latents, done.twins[0].candidate_latents)
    assert "where the tenth of the tokens that receive most" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_figure_shows_the_weights_of_the_prompts_own_video_tokens(
    name: str, open_family: Callable[..., OpenPipeline]
) -> None:
    opened = open_family(name)
    steps, final = calls_by_step(opened, PROMPTS[0], 5)
    clip = generate(opened, PROMPTS[0], 5)
    twin = Twin(PROMPTS[0], 5, clip, clip, final.numpy(), final.numpy(), [0.0], (1.0, 1.0))
    objective = {"token_weights": True, "lambda_min": 0.5, "lambda_max": 1.0}
    figure = _token_figure(opened, {"objective": objective}, twin)
    prompted = steps[1][0]  # the conditional call, or the batch whose last row is the conditional branch
    received = received_by_block(opened.pipe.transformer, opened.family, prompted)
    video = slice(FAMILIES[name].text_tokens, None) if name == "cogvideox" else slice(FAMILIES[name].video_tokens)
    shown = torch.from_numpy(figure.weights).flatten()
    assert figure.weights.shape == ((2, 4, 4) if name == "ltx" else (2, 2, 2))
    assert any(torch.allclose(token_weights(sums)[-1, video], shown, atol=1e-5) for sums in received)


@pytest.mark.parametrize("name", OTHERS)
def test_planned_bytes_are_the_bytes_that_are_written(name: str, made: Make, family_pipelines: dict[str, Path]) -> None:
    folder, storage = family_pipelines[name], made(name, "s2q_vdit").storage
    planned = plan(folder, get_recipe("s2q_vdit", "W4A6"), default_call(str(folder), folder))
    assert (planned.float_bytes, planned.quantized_bytes) == (storage.float_bytes, storage.quantized_bytes)
