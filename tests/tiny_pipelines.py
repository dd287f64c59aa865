"""A tiny random text-to-video pipeline around each transformer that one is tested with: for mechanics only."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLAllegro,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CosmosTransformer3DModel,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from tiny_families import SIZE, TEXT_LENGTH, make_llama, make_wan_vae
from tiny_transformers import ARCHITECTURES, COGVIDEOX
from torch import nn
from transformers import (
    ByT5Tokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
)

import s2q.models.folder
from s2q.models.pipelines import OpenPipeline, open_pipeline


def make(name: str, **changes: Any) -> ModelMixin:
    """The tiny transformer of a class, for a text encoder of 24 channels."""
    torch.manual_seed(0)
    config = next(architecture.config for architecture in ARCHITECTURES if architecture.name == name)
    return getattr(diffusers, name)(**(config | changes)).eval()


@dataclass(frozen=True)
class TinyPipeline:
    """How the tests make and call one pipeline."""

    class_name: str
    transformer: Callable[[], ModelMixin]
    vae: Callable[[], nn.Module]
    scheduler: Callable[[], Any]
    call: Mapping[str, Any]
    latent: tuple[int, int, int]
    """Frames, height and width of one clip made with `call`."""
    more: Callable[[], Mapping[str, Any]] = dict
    """Further components, or others than tokenizer and text encoder of T5."""
    media: tuple[str, ...] = ()
    """What its prompts have beside words."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the pipeline that its class sets, and that are too large for tests."""

    def save(self, folder: Path) -> Path:
        """Save it, complete, into `folder`."""
        torch.manual_seed(1)
        tokenizer = tiny.make_tokenizer()
        text_encoder = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
        parts = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "vae": self.vae(),
            "transformer": self.transformer(),
            "scheduler": self.scheduler(),
        }
        pipe = pipeline_class(self.class_name)(**parts | self.more())
        pipe.save_pretrained(folder)
        return folder

    def open(self, folder: Path) -> OpenPipeline:
        """Load what `save` saved, to be called with `call`."""
        opened = open_pipeline(str(folder), **self.call)
        for name, value in self.fixed.items():
            setattr(opened.pipe, name, value)
        return opened


class Guardrail(ModelMixin, ConfigMixin):
    """In the place of the one that Cosmos must be called with, of a package that is not installed here."""

    config_name = "config.json"

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def check_text_safety(self, prompt: str) -> bool:
        """Every one is safe."""
        return True

    def check_video_safety(self, video: np.ndarray) -> np.ndarray:
        """uint8 [F, H, W, 3], as it is."""
        return video


def pipeline_class(name: str) -> type[diffusers.DiffusionPipeline]:
    """diffusers' class; of ConsisID, which it shows beside opencv alone, without."""
    if name == "ConsisIDPipeline":
        return importlib.import_module("diffusers.pipelines.consisid.pipeline_consisid").ConsisIDPipeline
    return getattr(diffusers, name)


def with_stand_ins(class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that some pipelines want are not installed here: what they use of them, where it does something, is here.

    Wan's and others mend a prompt's letters with ftfy (there is nothing to mend), Cosmos sizes its mask with torchvision.
    """
    monkeypatch.setattr(diffusers, class_name, pipeline_class(class_name))
    module = sys.modules[getattr(diffusers, class_name).__module__]
    monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=lambda mask, size, interpolation: nn.functional.interpolate(mask, size)),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    monkeypatch.setattr(sys.modules[CosmosTransformer3DModel.__module__], "transforms", transforms, raising=False)
    monkeypatch.setattr(s2q.models.folder, "find_spec", lambda package: package)


def _mochi_vae() -> AutoencoderKLMochi:
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )


def _allegro_vae() -> AutoencoderKLAllegro:
    return AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_size=32
    )


def hunyuan_15_parts() -> dict[str, Any]:
    """A text encoder of 24 channels whose tokenizer writes a chat, one of glyphs, and guidance."""
    text_encoder, tokenizer = make_llama()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    glyphs = T5EncoderModel(T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    return {
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": glyphs,
        "tokenizer_2": ByT5Tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
    }


def make_hunyuan_15_vae() -> AutoencoderKLHunyuanVideo15:
    """Four channels, a quarter of the pixels a side."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(32, 32, 32), layers_per_block=1, spatial_compression_ratio=4
    )


def make_ltx2_vae() -> AutoencoderKLLTX2Video:
    """Four channels, an eighth of the pixels a side."""
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        downsample_type=("spatiotemporal",) * 4,
        upsample_residual=False,
        upsample_factor=(1, 1, 1),
        patch_size=2,
    )


def ltx2_parts() -> dict[str, Any]:
    """A text encoder of 24 channels, and what makes sound of two latent channels and two rows."""
    text = Gemma3TextConfig(
        vocab_size=len(tiny.WORDS) + 2,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    connectors = {
        f"{kind}_connector_{key}": value
        for kind in ("video", "audio")
        for key, value in {
            "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "num_learnable_registers": None
        }.items()
    }  # fmt: skip
    return {
        "text_encoder": Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        ),
        "tokenizer": make_llama()[1],
        "connectors": LTX2TextConnectors(caption_channels=24, text_proj_in_factor=3, **connectors),
        "audio_vae": AutoencoderKLLTX2Audio(base_channels=4, num_res_blocks=1, latent_channels=2, mel_bins=8),
        "vocoder": LTX2Vocoder(
            in_channels=16,
            hidden_channels=8,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1]],
        ),
    }


def make_cosmos_vae() -> AutoencoderKLCosmos:
    """Four channels, an eighth of the pixels a side."""
    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(),
        resolution=32,
        num_layers=1,
        patch_size=2,
        temporal_compression_ratio=4,
        latents_mean=None,
        latents_std=None,
    )


def make_magvit() -> AutoencoderKLMagvit:
    """Four channels, an eighth of the pixels a side."""
    return AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )


def chat_parts() -> dict[str, Any]:
    """A text encoder of 24 channels and three layers whose tokenizer writes a chat."""
    text_encoder, tokenizer = make_llama()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }} {% endfor %}"
    return {"text_encoder": text_encoder, "tokenizer": tokenizer}


def edm() -> EDMEulerScheduler:
    """As Cosmos has it."""
    return EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon", rho=7.0,
        final_sigmas_type="sigma_min",
    )  # fmt: skip


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


# The block that the default perturbs is the 28th.
LTX2 = {"spatio_temporal_guidance_blocks": [1]}
TEXT = {"max_sequence_length": TEXT_LENGTH}
HUNYUAN_15 = {
    "tokenizer_max_length": 6,
    "prompt_template_encode_start_idx": 0,
    "system_message": "",
    "tokenizer_2_max_length": 4,
    "vision_num_semantic_tokens": 3,
}
PIPELINES = {
    "cogvideox-1.5": TinyPipeline(
        "CogVideoXPipeline",
        lambda: make(
            "CogVideoXTransformer3DModel",
            **COGVIDEOX | {"patch_size_t": 2, "use_rotary_positional_embeddings": True, "patch_bias": False},
        ),
        tiny.make_vae,
        lambda: CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
        # Nine frames are three of the latent, and four when whole patches of two are filled.
        {"num_inference_steps": tiny.STEPS, "height": 16, "width": 16, "num_frames": 9} | TEXT,
        (4, 4, 4),
    ),
    "wan-vace": TinyPipeline(
        "WanVACEPipeline",
        # As many channels as the pipeline makes of a video and its mask; not as many control blocks as branches.
        lambda: make("WanVACETransformer3DModel", vace_in_channels=2 * 4 + 64, vace_layers=[0, 1, 2]),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (2, 4, 4),
    ),
    "skyreels-v2": TinyPipeline(
        "SkyReelsV2Pipeline",
        lambda: make("SkyReelsV2Transformer3DModel"),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (2, 4, 4),
    ),
    "mochi": TinyPipeline(
        "MochiPipeline",
        lambda: make("MochiTransformer3DModel", text_embed_dim=24),
        _mochi_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | {"num_frames": 7},
        (2, 4, 4),
    ),
    "allegro": TinyPipeline(
        "AllegroPipeline",
        # Rotary angles want heads that are a multiple of six wide.
        lambda: make("AllegroTransformer3DModel", attention_head_dim=12, cross_attention_dim=24),
        _allegro_vae,
        EulerAncestralDiscreteScheduler,
        SIZE | TEXT | {"num_frames": 24, "clean_caption": False},  # a whole tile of the VAE
        (6, 4, 4),
    ),
    "hunyuan-1.5": TinyPipeline(
        "HunyuanVideo15Pipeline",
        lambda: make(
            "HunyuanVideo15Transformer3DModel", in_channels=4 + 4 + 1
        ),  # noise, an image's latents, their mask
        make_hunyuan_15_vae,
        FlowMatchEulerDiscreteScheduler,
        {"num_inference_steps": tiny.STEPS, "height": 16, "width": 16, "num_frames": 5},
        (2, 4, 4),
        hunyuan_15_parts,
        fixed=HUNYUAN_15,
    ),
    "ltx2": TinyPipeline(
        "LTX2Pipeline",
        lambda: make("LTX2VideoTransformer3DModel"),
        make_ltx2_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | LTX2,
        (2, 4, 4),
        ltx2_parts,
    ),
    # As LTX-2.3, whose perturbed call leaves the self-attention of one block out.
    "ltx2-perturbed": TinyPipeline(
        "LTX2Pipeline",
        lambda: make("LTX2VideoTransformer3DModel", perturbed_attn=True),
        make_ltx2_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | LTX2,
        (2, 4, 4),
        ltx2_parts,
    ),
    "cosmos": TinyPipeline(
        "CosmosTextToWorldPipeline",
        lambda: make("CosmosTransformer3DModel", concat_padding_mask=True),
        make_cosmos_vae,
        edm,
        SIZE | TEXT,
        (2, 4, 4),
        lambda: {"safety_checker": Guardrail()},
    ),
    "cosmos-2.5": TinyPipeline(
        "Cosmos2_5_PredictBasePipeline",
        lambda: make(
            "CosmosTransformer3DModel",
            in_channels=4 + 1,
            concat_padding_mask=True,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=3 * 24,  # all layers of the text encoder
            encoder_hidden_states_channels=24,
        ),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (2, 4, 4),
        lambda: {"safety_checker": Guardrail()} | chat_parts(),
    ),
    "easyanimate": TinyPipeline(
        "EasyAnimatePipeline",
        lambda: make("EasyAnimateTransformer3DModel"),
        make_magvit,
        FlowMatchEulerDiscreteScheduler,
        SIZE,
        (2, 4, 4),
        chat_parts,
    ),
    "latte": TinyPipeline(
        "LattePipeline",
        lambda: make("LatteTransformer3DModel"),
        lambda: AutoencoderKL(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        DDIMScheduler,
        {"num_inference_steps": tiny.STEPS, "height": 32, "width": 32, "video_length": 2, "clean_caption": False},
        (2, 4, 4),
    ),
}
