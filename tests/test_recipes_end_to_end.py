"""Every recipe at every width: quantize the tiny pipeline, load it, compare with its simulation, make a video."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from tiny import CALL, PROMPTS, make_inputs, make_transformer, simulate

from s2q.checkpoint import PROVENANCE_NAME
from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.recipe import Bits
from s2q.recipes import RECIPES
from s2q.run import Quantized
from s2q.runtime.linear import QuantLinear
from s2q.twins import generate

BITS = ("W4A6", "W4A4", "W4A8", "W6A6", "W8A8", "W4A16")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", RECIPES)
def test_it_is_saved_loaded_and_generates_what_its_simulation_does(
    name: str, bits: str, quantized: Callable[..., Quantized], opened: OpenPipeline
) -> None:
    done = quantized(name, bits)
    model = load_transformer(done.folder, torch.float32).eval()
    packed = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert {(m.scheme.weight_bits) for m in packed} == {Bits.parse(bits).weight}
    assert done.storage.bits_per_block_weight == Bits.parse(bits).weight
    with torch.no_grad():
        ours = model(**make_inputs(), return_dict=False)[0]
        simulated = simulate(copy.deepcopy(model))(**make_inputs(), return_dict=False)[0]
        full = make_transformer()(**make_inputs(), return_dict=False)[0]
    assert (ours - simulated).norm() < 1e-3 * simulated.norm()
    error = float((ours - full).norm() / full.norm())
    assert 0 < error < (0.02 if bits == "W8A8" else 0.3)
    opened.pipe.transformer = model
    clip = generate(opened, PROMPTS[0], seed=0)
    assert clip.shape[1:] == (16, 16, 3)
    assert clip.std() > 0


@pytest.mark.parametrize("name", RECIPES)
def test_more_bits_are_never_much_worse(name: str, quantized: Callable[..., Quantized]) -> None:
    with torch.no_grad():
        full = make_transformer()(**make_inputs(), return_dict=False)[0]
        errors = []
        for bits in ("W4A4", "W8A8"):
            model = load_transformer(quantized(name, bits).folder, torch.float32).eval()
            errors.append(float((model(**make_inputs(), return_dict=False)[0] - full).norm()))
    assert errors[1] < 0.5 * errors[0]


def test_provenance_tells_how_it_was_made_and_no_time(quantized: Callable[..., Quantized]) -> None:
    provenance = json.loads((quantized().folder / PROVENANCE_NAME).read_text())
    assert provenance["recipe"]["name"] == "s2q_vdit"
    assert provenance["prompts"] == list(PROMPTS)
    assert provenance["call"].items() >= CALL.items()
    assert len(provenance["samples"]) == 2
    assert len(provenance["blocks"]) == 2
    assert all(block["after"] is not None for block in provenance["blocks"])
    assert "seconds" not in json.dumps(provenance)
