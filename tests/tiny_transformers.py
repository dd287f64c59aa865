"""A tiny random transformer of every architecture that s2q has a row for, and arguments of a call: for mechanics only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

B, TEXT = 2, 6


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text_mask() -> Tensor:
    """The rows have texts of different lengths."""
    return (torch.arange(TEXT) < torch.tensor([[5], [3]])).long()


@dataclass(frozen=True)
class Tiny:
    """How the tests make and call one architecture."""

    name: str
    config: dict[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    """Seed → arguments of a call."""
    blocks: int
    restarts: bool = False
    """Whether the model does something between blocks."""
    attention: bool = True
    """Whether what tokens receive can be seen."""

    def make(self) -> ModelMixin:
        """Weights from a fixed seed."""
        torch.manual_seed(0)
        model = getattr(diffusers, self.name)(**self.config).eval()
        # Some architectures begin with zeros, where nothing would be seen to pass.
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return model


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
WAN = HEADS | {
    "patch_size": (1, 2, 2), "in_channels": 4, "out_channels": 4, "text_dim": 24, "freq_dim": 16, "ffn_dim": 64,
    "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
HUNYUAN = HEADS | {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_refiner_layers": 1, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip


def video(seed: int = 0, channels: int = 4) -> dict[str, Tensor]:
    """Latents [B, C, F, h, w], text and time as most take them."""
    return {
        "hidden_states": noise(B, channels, 2, 4, 4, seed=seed),
        "encoder_hidden_states": noise(B, TEXT, 24, seed=seed + 1),
        "timestep": torch.full((B,), 500),
    }


def cogvideox(seed: int, frames: int = 2) -> dict[str, Tensor]:
    return {
        "hidden_states": noise(B, frames, 4, 4, 4, seed=seed),
        "encoder_hidden_states": noise(B, TEXT, 24, seed=seed + 1),
        "timestep": torch.full((B,), 500),
    }


COGVIDEOX = HEADS | {
    "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 24, "num_layers": 2, "sample_width": 4,
    "sample_height": 4, "sample_frames": 5, "patch_size": 2, "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT,
}  # fmt: skip


def rotary(tokens: int, width: int = 16) -> tuple[Tensor, Tensor]:
    angles = torch.linspace(0, 3, tokens * width).reshape(tokens, width)
    return angles.cos(), angles.sin()


def hunyuan(seed: int) -> dict[str, Any]:
    return video(seed) | {
        "encoder_attention_mask": text_mask(),
        "pooled_projections": noise(B, 8, seed=seed + 2),
        "guidance": torch.full((B,), 6000.0),
        "timestep": torch.full((B,), 500.0),
    }


ARCHITECTURES = [
    Tiny("CogVideoXTransformer3DModel", COGVIDEOX, cogvideox, 2),
    Tiny(
        "CogVideoXTransformer3DModel",
        COGVIDEOX | {"patch_size_t": 2, "use_rotary_positional_embeddings": True, "patch_bias": False},
        lambda seed: cogvideox(seed) | {"image_rotary_emb": rotary(4)},
        2,
    ),
    Tiny(
        "ConsisIDTransformer3DModel",
        COGVIDEOX | {
            "is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 8, "cross_attn_num_heads": 2,
            "LFE_id_dim": 4, "LFE_vit_dim": 4, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2,
            "LFE_num_id_token": 1, "LFE_num_querie": 1, "LFE_output_dim": 21, "LFE_ff_mult": 1, "LFE_num_scale": 1,
        },
        lambda seed: cogvideox(seed) | {
            "id_cond": torch.ones(B, 4), "id_vit_hidden": [torch.ones(B, 4, 4)],
        },
        2,
        restarts=True,
    ),
    Tiny("WanTransformer3DModel", WAN, video, 2),
    Tiny(
        "WanVACETransformer3DModel",
        WAN | {"num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 8},
        lambda seed: video(seed) | {
            "control_hidden_states": noise(B, 8, 2, 4, 4, seed=seed + 3),
            "control_hidden_states_scale": torch.tensor([1.0, 0.5]),
        },
        6,
        restarts=True,
    ),
    Tiny(
        "WanAnimateTransformer3DModel",
        WAN | {
            "in_channels": 12, "latent_channels": 4, "image_dim": 4, "num_layers": 4, "inject_face_latents_blocks": 2,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16,
            "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
        },
        lambda seed: video(seed) | {
            "hidden_states": noise(B, 12, 3, 4, 4, seed=seed), "pose_hidden_states": noise(B, 4, 2, 4, 4, seed=seed),
            "encoder_hidden_states_image": noise(B, 3, 4, seed=seed),
            "face_pixel_values": noise(B, 3, 5, 16, 16, seed=seed),
        },
        4,
        restarts=True,
    ),
    Tiny("SkyReelsV2Transformer3DModel", WAN, video, 2),
    Tiny(
        "HunyuanVideoTransformer3DModel",
        HUNYUAN | {"num_single_layers": 2, "text_embed_dim": 24, "pooled_projection_dim": 8},
        hunyuan,
        4,
    ),
    Tiny(
        "HunyuanVideoFramepackTransformer3DModel",
        HUNYUAN | {
            "num_single_layers": 2, "text_embed_dim": 24, "pooled_projection_dim": 8, "patch_size": 2,
            "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True,
        },
        lambda seed: hunyuan(seed) | {
            "image_embeds": noise(B, 3, 16, seed=seed),
            "indices_latents": torch.ones(3),
            "hidden_states": noise(B, 4, 3, 4, 4, seed=seed),
            "latents_clean": noise(B, 4, 2, 4, 4, seed=seed), "indices_latents_clean": torch.ones(2),
            "latents_history_2x": noise(B, 4, 2, 4, 4, seed=seed), "indices_latents_history_2x": torch.ones(2),
            "latents_history_4x": noise(B, 4, 4, 4, 4, seed=seed), "indices_latents_history_4x": torch.ones(4),
        },
        4,
    ),
    Tiny(
        "HunyuanVideo15Transformer3DModel",
        HUNYUAN | {
            "patch_size": 1, "text_embed_dim": 24, "text_embed_2_dim": 8, "image_embed_dim": 12, "target_size": 16,
            "task_type": "t2v",
        },
        lambda seed: {
            "hidden_states": noise(1, 4, 2, 4, 4, seed=seed), "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": noise(1, TEXT, 24, seed=seed), "encoder_attention_mask": torch.ones(1, TEXT),
            "encoder_hidden_states_2": noise(1, 4, 8, seed=seed), "encoder_attention_mask_2": torch.ones(1, 4),
            "image_embeds": noise(1, 3, 12, seed=seed),
        },
        2,
    ),
    Tiny(
        "LTXVideoTransformer3DModel",
        HEADS | {
            "in_channels": 8, "out_channels": 8, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 2,
            "caption_channels": 24, "qk_norm": "rms_norm_across_heads",
        },
        lambda seed: {
            "hidden_states": noise(B, 2 * 4 * 4, 8, seed=seed), "timestep": torch.full((B,), 500),
            "encoder_hidden_states": noise(B, TEXT, 24, seed=seed + 1), "encoder_attention_mask": text_mask(),
            "num_frames": 2, "height": 4, "width": 4,
        },
        2,
    ),
    Tiny(
        "LTX2VideoTransformer3DModel",
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
            "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "num_layers": 2,
            "qk_norm": "rms_norm_across_heads", "caption_channels": 24, "rope_double_precision": False,
        },
        lambda seed: {
            "hidden_states": noise(B, 2 * 4 * 4, 4, seed=seed), "audio_hidden_states": noise(B, 5, 4, seed=seed),
            "encoder_hidden_states": noise(B, TEXT, 24, seed=seed + 1),
            "audio_encoder_hidden_states": noise(B, TEXT, 24, seed=seed + 2), "timestep": torch.full((B,), 500.0),
            "num_frames": 2, "height": 4, "width": 4, "fps": 25.0, "audio_num_frames": 5,
        },
        2,
    ),
    Tiny(
        "MochiTransformer3DModel",
        {
            "patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
            "pooled_projection_dim": 16, "in_channels": 12, "out_channels": None, "text_embed_dim": 32,
            "time_embed_dim": 4, "activation_fn": "swiglu", "max_sequence_length": TEXT,
        },
        lambda seed: video(seed, 12) | {
            "encoder_hidden_states": noise(B, TEXT, 32, seed=seed), "encoder_attention_mask": text_mask().bool(),
        },
        2,
    ),
    Tiny(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2,
            "cross_attention_dim": 16, "sample_width": 8, "sample_height": 8, "sample_frames": 8, "caption_channels": 24,
        },
        video,
        2,
    ),
    Tiny(
        "LatteTransformer3DModel",
        {
            "sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
            "caption_channels": 24, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8,
            "attention_bias": True, "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6, "video_length": 2,
        },
        lambda seed: video(seed) | {"hidden_states": noise(B, 4, 2, 8, 8, seed=seed)},
        4,
        restarts=True,
    ),
    Tiny(
        "CosmosTransformer3DModel",
        HEADS | {
            "in_channels": 4, "out_channels": 4, "num_layers": 2, "mlp_ratio": 2, "text_embed_dim": 24,
            "adaln_lora_dim": 4, "max_size": (4, 32, 32), "patch_size": (1, 2, 2), "rope_scale": (2.0, 1.0, 1.0),
            "concat_padding_mask": False, "extra_pos_embed_type": "learnable",
        },
        lambda seed: video(seed) | {"fps": 30},
        2,
    ),
    Tiny(
        "EasyAnimateTransformer3DModel",
        HEADS | {
            "in_channels": 4, "out_channels": 4, "time_embed_dim": 2, "text_embed_dim": 24, "num_layers": 2,
            "sample_width": 8, "sample_height": 8, "patch_size": 2, "mmdit_layers": 1,
        },
        video,
        2,
    ),
]  # fmt: skip
