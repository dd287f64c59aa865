"""Checkpoints of every format version that ever was: they load today, to the same codes and the same answer."""

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file
from tiny import make_inputs

from s2q.checkpoint import FORMAT_VERSION
from s2q.export.source import open_folder
from s2q.numerics.packing import unpack
from s2q.runtime.linear import QuantLinear

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def test_every_version_has_a_checkpoint_that_says_so() -> None:
    versions = {open_folder(GOLDEN / name).spec.format_version for name in FOLDERS}
    assert versions == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_is_loaded_bit_for_bit(name: str) -> None:
    model = CogVideoXTransformer3DModel.from_pretrained(GOLDEN / name)
    stored, state = load_file(GOLDEN / name / "diffusion_pytorch_model.safetensors"), model.state_dict()
    assert state.keys() == stored.keys()
    for key, tensor in stored.items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor), key


@pytest.mark.parametrize("name", FOLDERS)
def test_codes_are_read_as_they_were_meant(name: str) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")
    model = CogVideoXTransformer3DModel.from_pretrained(GOLDEN / name)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    assert linears.keys() == expected.keys() - {"output"}
    for key, linear in linears.items():
        codes = unpack(linear.weight_packed, linear.scheme.weight_bits, linear.in_features)
        assert torch.equal(codes, expected[key]), key


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_the_model_answers_what_it_answered_then(name: str) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")["output"]
    model = CogVideoXTransformer3DModel.from_pretrained(GOLDEN / name).eval()
    answer = model(**make_inputs(), return_dict=False)[0]
    # Another CPU may round a transform differently, which can move a code of an activation by one.
    assert (answer - expected).norm() < 0.01 * expected.norm()


def test_the_formats_parts_are_all_in_some_checkpoint() -> None:
    """A part of the format that no golden checkpoint has could change its meaning unseen."""
    schemes = [scheme for name in FOLDERS for scheme in open_folder(GOLDEN / name).spec.schemes]
    for part in (
        "channel_scale",
        "kronecker",
        "hadamard_block",
        "input_clip",
        "low_rank",
        "group_size",
        "act_group_size",
    ):
        assert any(getattr(scheme, part) for scheme in schemes), part
    assert any(not scheme.symmetric_weights for scheme in schemes)
    assert any(not scheme.symmetric_acts for scheme in schemes)
