"""Tiny random models, and the one cheap way in which the tests quantize: for mechanics only, never for quality."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from s2q.calibration.calls import Call, calls_by_section
from s2q.checkpoint import SchemeSpec
from s2q.models.pipelines import OpenPipeline
from s2q.numerics.kronecker import kronecker_factors, random_orthogonal
from s2q.numerics.packing import pack, unpack
from s2q.numerics.quantizer import group_count, integer_range
from s2q.numerics.straight_through import fake_quantize
from s2q.recipe import Recipe
from s2q.recipes import get_recipe, override
from s2q.runtime.linear import QuantLinear
from s2q.runtime.reference import ActFormat, input_grid, transform_input

TEXT_LENGTH = 8
WORDS = ("a", "red", "blue", "square", "circle", "moves", "left", "right")
PROMPTS = ("a red square moves left", "a blue circle moves right")
STEPS = 3
CALL = {"num_inference_steps": STEPS, "height": 16, "width": 16, "num_frames": 5}
CHEAP = ("sampler.prompts=2", "sampler.count=2", "optim.epochs=1")


def make_transformer(**changes: Any) -> CogVideoXTransformer3DModel:
    """Two blocks, 32 channels, weights from a fixed seed."""
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
        "num_layers": 2,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 9,
        "patch_size": 2,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": TEXT_LENGTH,
    }
    return CogVideoXTransformer3DModel(**(config | changes)).eval()


def make_inputs(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of one call of `make_transformer()`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 2, 4, 4, 4, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, 24, generator=generator),
        "timestep": torch.full((batch,), 500),
    }


def make_vae() -> AutoencoderKLCogVideoX:
    """Four times fewer frames and pixels a side, four channels."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        temporal_compression_ratio=4,
        sample_height=16,
        sample_width=16,
    )


def make_tokenizer() -> T5Tokenizer:
    """Knows `WORDS`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    return T5Tokenizer(vocab=pieces + [(f"▁{word}", -1.0) for word in WORDS], extra_ids=0)


def make_pipeline(folder: Path) -> Path:
    """Save a complete pipeline around `make_transformer` into `folder`."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = make_vae()
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=make_transformer(), scheduler=scheduler
    )
    pipe.save_pretrained(folder)
    return folder


def calls_by_step(opened: OpenPipeline, prompt: str, seed: int) -> tuple[list[list[Call]], Tensor]:
    """The steps of all sections, see `calls_by_section`, and the latent that the last one leaves."""
    sections = calls_by_section(opened, prompt, seed)
    return [step for section in sections for step in section.steps], sections[-1].final


def cheap(name: str, bits: str, *changes: str) -> Recipe:
    """A recipe with two prompts, two samples and one epoch."""
    return override(get_recipe(name, bits), [*CHEAP, *changes])


def make_linear(
    rows: int,
    columns: int,
    weight_bits: int,
    act_bits: int | None,
    *,
    transform: bool = False,
    hadamard: int | None = None,
    bias: bool = True,
    **changes: Any,
) -> QuantLinear:
    """A `QuantLinear` with random codes, scales and whatever else `transform`, `hadamard` and `changes` of its scheme
    ask for."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    kronecker = {str(columns): kronecker_factors(columns)} if transform else {}
    scheme = SchemeSpec(
        weight_bits=weight_bits,
        act_bits=act_bits,
        channel_scale=transform or hadamard is not None,
        kronecker=transform,
        hadamard_block=hadamard,
        input_clip=transform and act_bits is not None,
        kronecker_factors=kronecker,
        targets={},
        **changes,
    )
    groups = group_count(columns, scheme.group_size)
    smallest, largest = integer_range(weight_bits)
    codes = torch.randint(smallest, largest + 1, (rows, columns), generator=generator, dtype=torch.int8)
    values = {
        "weight_packed": pack(codes, weight_bits),
        "weight_scale": torch.rand(rows, groups, generator=generator) * 0.1 + 0.01,
        "weight_shape": torch.tensor([rows, columns]),
        "bias": torch.randn(rows, generator=generator) if bias else None,
    }
    if scheme.channel_scale:
        values["input_scale"] = torch.rand(columns, generator=generator) + 0.5
    if transform:
        n1, n2 = kronecker_factors(columns)
        values["input_left"] = random_orthogonal(n1, generator) * 1.5
        values["input_right"] = random_orthogonal(n2, generator)
        values["input_clip"] = torch.tensor([0.9])
    if not scheme.symmetric_weights:
        zeros = torch.randint(smallest, largest + 1, (groups, rows), generator=generator, dtype=torch.int8)
        values["weight_zero_point"] = pack(zeros, weight_bits).mT
    if scheme.input_range:
        values["input_range"] = torch.tensor([-1.5, 2.0])
    if scheme.low_rank:
        rank = min(scheme.low_rank, rows, columns)
        values["low_rank_down"] = torch.randn(rank, columns, generator=generator).bfloat16()
        values["low_rank_up"] = torch.randn(rows, rank, generator=generator).bfloat16()
    linear = QuantLinear(columns, rows, bias, scheme)
    for name, parameter in linear.named_parameters():
        parameter.data = values[name]
    return linear


class FloatSimulation(nn.Module):
    """What a `QuantLinear` stands for, in floating point and without packing or integers: an oracle of its own."""

    def __init__(self, linear: QuantLinear):
        super().__init__()
        scheme, self.transform = linear.scheme, linear.input_transform()
        self.acts = None
        if scheme.act_bits is not None:
            self.acts = ActFormat(scheme.act_bits, scheme.symmetric_acts, linear.act_groups)
        codes = unpack(linear.weight_packed, scheme.weight_bits, linear.in_features).unflatten(
            1, (self.groups(linear), -1)
        )
        zero = 0
        if not scheme.symmetric_weights:
            zero = unpack(linear.weight_zero_point.mT, scheme.weight_bits, linear.out_features).mT[:, :, None].float()
        self.weight = ((codes - zero) * linear.weight_scale[:, :, None]).flatten(1)
        self.bias, self.low_rank = linear.bias, linear.low_rank()

    @staticmethod
    def groups(linear: QuantLinear) -> int:
        """G."""
        return linear.weight_scale.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N]."""
        values = rounded = transform_input(x, self.transform)
        if self.acts is not None:
            scale, zero = input_grid(values, self.transform, self.acts)
            rounded = fake_quantize(values, scale, self.acts.bits, zero)
        y = nn.functional.linear(rounded, self.weight, self.bias)
        if self.low_rank is not None:
            taken = rounded if self.low_rank.on_codes else values
            y = y + (taken @ self.low_rank.down.float().mT) @ self.low_rank.up.float().mT
        return y.to(x.dtype)


def simulate(model: nn.Module) -> nn.Module:
    """Put a `FloatSimulation` in the place of every `QuantLinear` of `model`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(name, FloatSimulation(module))
    return model


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Relative path → content of every file in `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tampered(
    folder: Path,
    copy: Path,
    *,
    tensors: Callable[[dict[str, Tensor]], Any] = lambda tensors: None,
    config: Callable[[dict[str, Any]], Any] = lambda config: None,
    weights: str = "diffusion_pytorch_model.safetensors",
) -> Path:
    """A copy of a model's folder, its tensors and its configuration changed in place by the two functions."""
    shutil.copytree(folder, copy)
    state = load_file(copy / weights)
    tensors(state)
    save_file(state, copy / weights, metadata={"format": "pt"})
    settings = json.loads((copy / "config.json").read_text())
    config(settings)
    (copy / "config.json").write_text(json.dumps(settings))
    return copy


def without_weights(pipeline: Path, folder: Path) -> Path:
    """A copy of a pipeline's configurations alone."""
    shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder
