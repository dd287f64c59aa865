"""Plain transformers loads and saves text encoders that s2q packed, and a damaged file is never loaded silently."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import CALL, PROMPTS, simulate, tampered
from tiny_encoders import ENCODERS, IDS, encode, make_encoder
from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedModel, T5EncoderModel

from s2q.checkpoint import CheckpointError
from s2q.runtime.linear import QuantLinear
from s2q.text_encoders.opening import block_list, blocks_on_disk, load_text_encoders

Packed = Callable[[str], Path]
WEIGHTS = "model.safetensors"
QUERY = "encoder.block.0.layer.0.SelfAttention.q"


def load(folder: Path, kind: str = "t5", **options) -> PreTrainedModel:
    return type(make_encoder(kind)).from_pretrained(folder, **options)


def packed_linears(model: nn.Module) -> dict[str, QuantLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ENCODERS)
class TestKind:
    """Each kind of encoder."""

    def test_every_linear_is_packed_and_everything_else_is_as_it_was(self, kind: str, packed: Packed) -> None:
        plain, model = make_encoder(kind), load(packed(kind), kind)
        linears = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
        assert set(packed_linears(model)) == linears
        before, after = plain.state_dict(), model.state_dict()
        kept = [name for name in before if name.removesuffix(".weight") not in linears]
        assert all(torch.equal(before[name], after[name]) for name in kept)
        assert not any(p.requires_grad for linear in packed_linears(model).values() for p in linear.parameters(False))

    def test_output_is_that_of_the_simulation(self, kind: str, packed: Packed) -> None:
        model = load(packed(kind), kind)
        expected = encode(simulate(copy.deepcopy(model)))
        assert torch.allclose(encode(model), expected, rtol=1e-4, atol=1e-5)
        plain = encode(make_encoder(kind))
        assert 0 < (encode(model) - plain).norm() < 0.3 * plain.norm()

    @pytest.mark.parametrize("shard", ["10GB", "6KB"])
    def test_saved_again_it_loads_to_the_same_bits(self, shard: str, kind: str, packed: Packed, tmp_path: Path) -> None:
        model = load(packed(kind), kind)
        model.save_pretrained(tmp_path, max_shard_size=shard)
        assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "6KB")
        again = load(tmp_path, kind)
        assert same_tensors(again, model)
        assert torch.equal(encode(again), encode(model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_scales_as_written_and_the_output_close(
        self, dtype: torch.dtype, kind: str, packed: Packed
    ) -> None:
        half, stored = load(packed(kind), kind, dtype=dtype), load_file(packed(kind) / WEIGHTS)
        for name, linear in packed_linears(half).items():
            for key, tensor in linear.packed_tensors().items():
                assert tensor.dtype == stored[f"{name}.{key}"].dtype
                assert torch.equal(tensor, stored[f"{name}.{key}"])
        assert half.dtype == dtype
        assert half.get_input_embeddings().weight.dtype == dtype
        expected = encode(load(packed(kind), kind))
        assert (encode(half).float() - expected).norm() < 0.03 * expected.norm()

    def test_the_simulation_in_half_precision_is_the_same_too(self, kind: str, packed: Packed) -> None:
        """What T5 casts the input of its last linear to must not be the packed weight's int32."""
        half = load(packed(kind), kind, dtype=torch.float16)
        plain = half.dequantize()
        assert not packed_linears(plain)
        expected = encode(plain).float()
        found = encode(load(packed(kind), kind, dtype=torch.float16)).float()
        assert torch.isfinite(found).all()
        assert (found - expected).norm() < 0.01 * expected.norm()

    def test_a_device_map_with_blocks_on_disk_gives_the_same_output(
        self, kind: str, packed: Packed, tmp_path: Path
    ) -> None:
        model = load(packed(kind), kind)
        placed = blocks_on_disk(model, block_list(model), "cpu")
        away = load(packed(kind), kind, device_map=placed, offload_folder=tmp_path)
        assert any(linear.weight_packed.is_meta for linear in packed_linears(away).values())
        assert torch.equal(encode(away), encode(model))


def test_t5_in_float16_computes_its_last_linears_in_float32_as_the_float_model_does(packed: Packed) -> None:
    model = load(packed("t5-gated"), "t5-gated", dtype=torch.float16)
    seen = {}
    for name, linear in packed_linears(model).items():
        linear.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out.dtype}))
    encode(model)
    assert {name for name, dtype in seen.items() if dtype == torch.float32} == {n for n in seen if n.endswith(".wo")}
    linear = model.get_submodule("encoder.block.0.layer.1.DenseReluDense.wo")
    large = torch.full((1, 40), 6e4, dtype=torch.float16)
    assert torch.isfinite(linear(large * linear.dequantize().weight[0].sign())).all(), "float16 would overflow"


def test_the_automatic_classes_load_it_or_say_what_is_missing(packed: Packed) -> None:
    assert same_tensors(AutoModel.from_pretrained(packed("llama")), load(packed("llama"), "llama"))
    assert same_tensors(AutoModelForTextEncoding.from_pretrained(packed("t5")), load(packed("t5")))
    with pytest.raises(CheckpointError, match="lacks decoder"):
        AutoModel.from_pretrained(packed("t5"))  # T5Model, which has a decoder


def test_a_pipeline_takes_it_and_is_saved_and_loaded_with_it(
    tiny_pipeline: Path, tmp_path: Path, packed_own: Path
) -> None:
    encoder = T5EncoderModel.from_pretrained(packed_own)
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, text_encoder=encoder)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert same_tensors(again.text_encoder, encoder)
    clips = []
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        clips.append(one(PROMPTS[0], max_sequence_length=8, output_type="pt", generator=generator, **CALL).frames)
    assert torch.equal(*clips)


def test_casting_after_loading_leaves_scales_alone(packed: Packed) -> None:
    model = load(packed("t5")).to(torch.bfloat16)
    assert all(linear.weight_scale.dtype == torch.float32 for linear in packed_linears(model).values())
    assert model(input_ids=IDS)[0].dtype == torch.bfloat16


def test_without_s2q_transformers_only_warns(packed: Packed) -> None:
    """The trap that docs/text-encoders.md tells of; if transformers ever refuses instead, the page can say so."""
    program = f"from transformers import T5EncoderModel as M; M.from_pretrained({str(packed('t5'))!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Unknown quantization type, got s2q" in done.stdout + done.stderr


def put(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change


def cut(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


HOSTILE_TENSORS = {
    "codes missing": (lambda t: t.pop(f"{QUERY}.weight_packed"), "lacks.*weight_packed"),
    "zero points missing": (lambda t: t.pop(f"{QUERY}.weight_zero_point"), "lacks.*weight_zero_point"),
    "embedding missing": (lambda t: t.pop("shared.weight"), "lacks.*shared.weight"),
    "norm missing": (lambda t: t.pop("encoder.final_layer_norm.weight"), "lacks.*final_layer_norm"),
    "codes of wrong shape": (cut(f"{QUERY}.weight_packed"), "weight_packed has shape"),
    "scale of wrong shape": (cut(f"{QUERY}.weight_scale"), "weight_scale has shape"),
    "embedding of wrong shape": (cut("shared.weight"), "shared.weight has shape"),
    "scale of wrong type": (
        lambda t: t.update({f"{QUERY}.weight_scale": t[f"{QUERY}.weight_scale"].bfloat16()}),
        "weight_scale is torch.bfloat16",
    ),
    "NaN in scale": (put(f"{QUERY}.weight_scale", float("nan")), "not finite"),
    "NaN in a norm": (put("encoder.final_layer_norm.weight", float("nan")), "not finite"),
    "one code changed": (lambda t: t[f"{QUERY}.weight_packed"].view(-1)[3:4].bitwise_xor_(1 << 9), "checksum"),
    "scale changed a little": (put(f"{QUERY}.weight_scale", 0.01234), "checksum"),
    "norm changed a little": (put("encoder.final_layer_norm.weight", 0.987), "checksums"),
}


def settings_of(config: dict) -> dict:
    return config["quantization_config"]


HOSTILE_CONFIGS = {
    "newer format": (lambda c: settings_of(c).update(format_version=99), "upgrade s2q"),
    "unknown key": (lambda c: settings_of(c).update(rotation="magic"), "rotation"),
    "linear that does not exist": (
        lambda c: settings_of(c)["schemes"][0]["targets"].update({"encoder.block.9.layer.0.q": "00000000"}),
        "encoder.block.9",
    ),
    "other bits": (lambda c: settings_of(c)["schemes"][0].update(weight_bits=5), "weight_packed"),
    "other groups": (lambda c: settings_of(c)["schemes"][0].update(group_size=12), "weight_scale"),
    "another epsilon": (lambda c: c.update(layer_norm_epsilon=0.1), "config.json"),
}


@pytest.mark.parametrize("damage", HOSTILE_TENSORS)
def test_damaged_tensors_are_an_error_that_names_them(damage: str, packed: Packed, tmp_path: Path) -> None:
    change, said = HOSTILE_TENSORS[damage]
    hostile = tampered(packed("t5"), tmp_path / "hostile", tensors=change, weights=WEIGHTS)
    with pytest.raises(CheckpointError, match=said):
        load(hostile)


@pytest.mark.parametrize("damage", HOSTILE_CONFIGS)
def test_a_wrong_configuration_is_an_error_that_names_it(damage: str, packed: Packed, tmp_path: Path) -> None:
    change, said = HOSTILE_CONFIGS[damage]
    hostile = tampered(packed("t5"), tmp_path / "hostile", config=change, weights=WEIGHTS)
    with pytest.raises(CheckpointError, match=said):
        load(hostile)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file_is_an_error(kept: int, packed: Packed, tmp_path: Path) -> None:
    shutil.copytree(packed("t5"), tmp_path / "hostile")
    path = tmp_path / "hostile" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((CheckpointError, SafetensorError, OSError)):
        load(tmp_path / "hostile")


def test_tampering_alone_does_not_break_a_folder(packed: Packed, tmp_path: Path) -> None:
    assert same_tensors(load(tampered(packed("t5"), tmp_path / "copy", weights=WEIGHTS)), load(packed("t5")))


def test_a_folder_that_is_no_packed_text_encoder_is_refused(
    tiny_pipeline: Path, packed: Packed, packed_own: Path
) -> None:
    with pytest.raises(ValueError, match="wrote"):
        load_text_encoders(tiny_pipeline, [tiny_pipeline / "text_encoder"], torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"UMT5EncoderModel.*T5EncoderModel"):
        load_text_encoders(tiny_pipeline, [packed("umt5")], torch.float32, "cpu")
    with pytest.raises(ValueError, match="second text_encoder"):
        load_text_encoders(tiny_pipeline, [packed_own, packed_own], torch.float32, "cpu")
