"""Plain diffusers loads, saves and trains what s2q wrote, and a damaged file is never loaded silently."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, CogVideoXTransformer3DModel, DiffusionPipeline
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import CALL, PROMPTS, make_inputs, make_transformer, simulate, tampered
from torch import nn

from s2q.checkpoint import CheckpointError
from s2q.runtime.linear import QuantLinear
from s2q.runtime.loading import swap_linears

WEIGHTS = "diffusion_pytorch_model.safetensors"
QUERY = "transformer_blocks.0.attn1.to_q"


@torch.no_grad()
def output(model: nn.Module, seed: int = 0) -> torch.Tensor:
    return model(**make_inputs(seed=seed), return_dict=False)[0]


def load(folder: Path) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel.from_pretrained(folder)


def test_every_linear_of_the_blocks_is_packed_and_none_else(model: CogVideoXTransformer3DModel) -> None:
    packed = {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    linears = {name for name, module in make_transformer().named_modules() if isinstance(module, nn.Linear)}
    assert packed == {name for name in linears if name.startswith("transformer_blocks.")}


def test_automodel_and_the_class_load_the_same(folder: Path, model: CogVideoXTransformer3DModel) -> None:
    assert torch.equal(output(AutoModel.from_pretrained(str(folder)).eval()), output(model))


def test_output_is_that_of_the_simulation(model: CogVideoXTransformer3DModel) -> None:
    simulated = simulate(copy.deepcopy(model))
    assert not any(isinstance(module, QuantLinear) for module in simulated.modules())
    assert torch.allclose(output(model), output(simulated), rtol=1e-3, atol=1e-4)


def test_a_pipeline_takes_the_transformer_and_generates(tiny_pipeline: Path, model: nn.Module) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=model)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(PROMPTS[0], max_sequence_length=8, output_type="np", **CALL).frames[0]
    assert frames.shape[1:] == (16, 16, 3)
    assert frames.std() > 0


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_saved_again_it_loads_to_the_same_bits(shard: str, model: nn.Module, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size=shard)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (shard == "20KB")
    again = load(tmp_path)
    for (name, one), (other_name, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert torch.equal(output(again.eval()), output(model))


def test_a_whole_pipeline_is_saved_and_loaded(tiny_pipeline: Path, model: nn.Module, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(tiny_pipeline, transformer=model).save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path).transformer.eval()
    assert torch.equal(output(again), output(model))


def test_loading_in_half_precision_keeps_scales_and_transforms_as_written(folder: Path) -> None:
    half = CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    stored = load_file(folder / WEIGHTS)
    for name, module in half.named_modules():
        if isinstance(module, QuantLinear):
            for key, tensor in module.packed_tensors().items():
                assert tensor.dtype == stored[f"{name}.{key}"].dtype
                assert torch.equal(tensor, stored[f"{name}.{key}"])
            assert module.bias.dtype == torch.bfloat16
    assert half.dtype == torch.bfloat16


def test_casting_after_loading_is_refused_and_not_half_done(model: nn.Module) -> None:
    before = output(model)
    with pytest.raises(ValueError, match="Casting a quantized model"):
        model.to(torch.bfloat16)
    assert torch.equal(output(model), before)


def test_dequantize_gives_a_plain_model_close_to_it(folder: Path, model: nn.Module) -> None:
    plain = load(folder).eval()
    plain.dequantize()
    assert not any(isinstance(module, QuantLinear) for module in plain.modules())
    assert (output(plain) - output(model)).norm() < 0.1 * output(model).norm()


def test_memory_is_what_the_bits_promise(model: nn.Module) -> None:
    packed = [module for module in model.modules() if isinstance(module, QuantLinear)]
    codes = sum(module.weight_packed.nbytes for module in packed)
    assert codes == sum(module.in_features * module.out_features for module in packed) // 2


def test_a_fresh_process_without_s2q_gets_a_clear_error(folder: Path) -> None:
    program = f"import diffusers; diffusers.CogVideoXTransformer3DModel.from_pretrained({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Unknown quantization type, got s2q" in done.stderr


def test_the_whole_model_compiles_without_a_graph_break(model: nn.Module) -> None:
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(output(compiled), output(model), rtol=1e-4, atol=1e-5)


class TestLora:
    """Adapters train through a quantized transformer."""

    @pytest.fixture
    def adapted(self, model: CogVideoXTransformer3DModel) -> CogVideoXTransformer3DModel:
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0", "norm1.linear"]))
        return model.train()

    def test_a_new_adapter_changes_nothing(self, folder: Path, adapted: nn.Module) -> None:
        assert torch.allclose(output(adapted.eval()), output(load(folder).eval()), atol=1e-5)

    def test_only_the_adapter_is_trained(self, adapted: nn.Module) -> None:
        assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)

    def test_training_lowers_the_loss(self, adapted: nn.Module) -> None:
        target = output(make_transformer(), seed=5)
        inputs = make_inputs(seed=5)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(12):
            loss = (adapted(**inputs, return_dict=False)[0] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert min(losses[-3:]) < 0.8 * losses[0]
        trained = [p for name, p in adapted.named_parameters() if "lora_B" in name]
        assert all(bool(p.any()) for p in trained), "some adapter got no gradient"


def flip_one_bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{QUERY}.weight_packed"][3, 1] ^= 1 << 9


def put(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = value

    return change


def wrong_shape(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})


HOSTILE_TENSORS = {
    "packed weight missing": (lambda t: t.pop(f"{QUERY}.weight_packed"), "lacks.*weight_packed"),
    "transform missing": (lambda t: t.pop(f"{QUERY}.input_left"), "lacks.*input_left"),
    "bias missing": (lambda t: t.pop(f"{QUERY}.bias"), "lacks.*bias"),
    "float tensor missing": (lambda t: t.pop("proj_out.weight"), "lacks.*proj_out"),
    "packed weight of wrong shape": (wrong_shape(f"{QUERY}.weight_packed"), "weight_packed"),
    "scale of wrong shape": (wrong_shape(f"{QUERY}.weight_scale"), "weight_scale"),
    "transform of wrong shape": (wrong_shape(f"{QUERY}.input_right"), "input_right"),
    "scale of wrong type": (
        lambda t: t.update({f"{QUERY}.weight_scale": t[f"{QUERY}.weight_scale"].bfloat16()}),
        "weight_scale",
    ),
    "NaN in scale": (put(f"{QUERY}.weight_scale", float("nan")), "not finite"),
    "infinity in transform": (put(f"{QUERY}.input_scale", float("inf")), "not finite"),
    "NaN in a float tensor": (put("proj_out.weight", float("nan")), "not finite"),
    "one bit flipped in the codes": (flip_one_bit, "checksum"),
    "scale changed a little": (put(f"{QUERY}.weight_scale", 0.01234), "checksum"),
    "clip changed a little": (put(f"{QUERY}.input_clip", 0.5), "checksum"),
    "shape that lies": (put(f"{QUERY}.weight_shape", 31), "weight_shape|checksum"),
    "codes of another linear": (
        lambda t: t.update({f"{QUERY}.weight_packed": t[QUERY.replace("to_q", "to_k") + ".weight_packed"].clone()}),
        "checksum",
    ),
}


@pytest.mark.parametrize("damage", HOSTILE_TENSORS)
def test_damaged_tensors_are_an_error_that_names_them(damage: str, folder: Path, tmp_path: Path) -> None:
    change, said = HOSTILE_TENSORS[damage]
    hostile = tampered(folder, tmp_path / "hostile", tensors=change)
    with pytest.raises(CheckpointError, match=said):
        load(hostile)


def settings_of(config: dict) -> dict:
    return config["quantization_config"]


HOSTILE_CONFIGS = {
    "newer format": (lambda c: settings_of(c).update(format_version=4), "upgrade s2q"),
    "unknown key": (lambda c: settings_of(c).update(rotation="magic"), "rotation"),
    "unknown key in a scheme": (lambda c: settings_of(c)["schemes"][0].update(tile_size=64), "tile_size"),
    "key missing": (lambda c: settings_of(c).pop("schemes"), "schemes"),
    "linear that does not exist": (
        lambda c: settings_of(c)["schemes"][0]["targets"].update({"transformer_blocks.9.attn1.to_q": "00000000"}),
        "transformer_blocks.9.attn1.to_q",
    ),
    "target that is no linear": (
        lambda c: settings_of(c)["schemes"][0]["targets"].update({"transformer_blocks.0.norm1.norm": "00000000"}),
        "norm1.norm",
    ),
    "linear named twice": (
        lambda c: settings_of(c)["schemes"][1]["targets"].update(settings_of(c)["schemes"][0]["targets"]),
        "twice",
    ),
    "other bits": (lambda c: settings_of(c)["schemes"][0].update(weight_bits=5), "weight_packed"),
    "bits that do not exist": (lambda c: settings_of(c)["schemes"][0].update(weight_bits=1), "weight_bits"),
    "Kronecker factors that do not fit": (
        lambda c: settings_of(c)["schemes"][0]["kronecker_factors"].update({"32": [4, 9]}),
        "do not make width 32",
    ),
    "Kronecker factors missing": (
        lambda c: settings_of(c)["schemes"][0]["kronecker_factors"].pop("32"),
        "no entry for width 32",
    ),
    "Hadamard blocks that do not fit": (
        lambda c: settings_of(c)["schemes"][0].update(kronecker=False, hadamard_block=64),
        "does not divide width 32",
    ),
    "Hadamard blocks of no power of two": (
        lambda c: settings_of(c)["schemes"][0].update(kronecker=False, hadamard_block=12),
        "no power of two",
    ),
    "two rotations": (lambda c: settings_of(c)["schemes"][0].update(hadamard_block=8), "not both"),
    "shared input of a linear that does not exist": (
        lambda c: settings_of(c).update(shared_inputs=[["transformer_blocks.0.attn1.to_z"]]),
        "to_z",
    ),
    "shared input of linears with other transforms": (
        lambda c: settings_of(c).update(
            shared_inputs=[["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_q"]]
        ),
        "shared",
    ),
}


@pytest.mark.parametrize("damage", HOSTILE_CONFIGS)
def test_a_wrong_configuration_is_an_error_that_names_it(damage: str, folder: Path, tmp_path: Path) -> None:
    change, said = HOSTILE_CONFIGS[damage]
    hostile = tampered(folder, tmp_path / "hostile", config=change)
    with pytest.raises(CheckpointError, match=said):
        load(hostile)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file_is_an_error(kept: int, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "hostile")
    path = tmp_path / "hostile" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((SafetensorError, OSError, ValueError)):
        load(tmp_path / "hostile")


def test_tampering_alone_does_not_break_a_folder(folder: Path, tmp_path: Path, model: nn.Module) -> None:
    copied = tampered(folder, tmp_path / "copy")
    assert torch.equal(output(load(copied).eval()), output(model))


def test_all_offenders_are_listed_and_not_the_first(folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for leaf in ("to_q", "to_k"):
            tensors[f"transformer_blocks.0.attn1.{leaf}.weight_packed"][0, 0] ^= 1

    with pytest.raises(CheckpointError, match=r"to_q.*to_k|to_k.*to_q"):
        load(tampered(folder, tmp_path / "hostile", tensors=change))


def test_swapping_names_what_the_model_does_not_have(model: CogVideoXTransformer3DModel) -> None:
    spec = model.config.quantization_config.spec
    with pytest.raises(CheckpointError, match="no linear layer named"):
        swap_linears(nn.Sequential(nn.Linear(2, 2)), spec)
