"""The CogVideoX demo: its transformer and text encoder, its noise schedule, its loss, and its pipeline."""

from __future__ import annotations

import math

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional

from s2q.demo import scenes
from s2q.demo.autoencoder import LATENT_CHANNELS
from s2q.demo.export import stored_as
from s2q.demo.latents import LatentClips
from s2q.demo.loop import LossFunction
from s2q.demo.text import MAX_TEXT_TOKENS, WIDTH, build_text_encoder, build_tokenizer, tokenize

_CAPTION_DROPOUT = 0.1
_HEAD_WIDTH = 32
_LATENT_SIZE = scenes.SIZE // 4


class ExplicitAttention:
    """Attention in separate matrix products: at 64 tokens its backward pass is faster on a CPU than the fused one."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: None = None,
        image_rotary_emb: None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Joint attention over text [B, L, D] and video [B, S, D]; returns both in the order video, text."""
        text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(joint).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        mixed = attn.to_out[0](mixed)
        return mixed[:, text_tokens:], mixed[:, :text_tokens]


def build_transformer(heads: int = 5, layers: int = 6) -> CogVideoXTransformer3DModel:
    """An untrained transformer over 3x8x8 latents in 2x2 patches: 48 video tokens after 16 text tokens."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=_HEAD_WIDTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=128,
        text_embed_dim=WIDTH,
        num_layers=layers,
        sample_width=_LATENT_SIZE,
        sample_height=_LATENT_SIZE,
        sample_frames=scenes.FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=MAX_TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
    )
    # Each block starts as the identity and the model as zero, which lets the learning rate be high from the start.
    silent = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm2)]
    for linear in [*silent, transformer.proj_out]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def build_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX's own schedule: v-prediction, zero terminal signal, trailing steps."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=3.0,
        clip_sample=False,
    )


def build_denoiser(heads: int = 5, layers: int = 6) -> nn.ModuleDict:
    """What diffusion training trains: ``transformer`` and ``text_encoder``."""
    return nn.ModuleDict(
        {
            "transformer": build_transformer(heads, layers),
            "text_encoder": build_text_encoder(len(build_tokenizer())),
        }
    )


def diffusion_loss(denoiser: nn.ModuleDict, clips: LatentClips, *, batch: int = 32) -> LossFunction:
    """Mean squared error of the predicted velocity at uniformly drawn timesteps."""
    transformer, text_encoder = denoiser["transformer"], denoiser["text_encoder"]
    device = transformer.device
    captions = [scene.caption for scene in scenes.training_scenes()]
    tokens = tokenize(build_tokenizer(), [*captions, ""]).to(device)
    no_caption = len(captions)
    scheduler = build_scheduler()
    scaling_factor = clips.scaling_factor

    def loss(generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(len(clips.scene), (batch,), generator=generator)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator).to(device)
        latents = (clips.latents[drawn].float() * scaling_factor).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        dropped = torch.rand(batch, generator=generator) < _CAPTION_DROPOUT
        scene = torch.where(dropped, no_caption, clips.scene[drawn]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            predicted = transformer(
                hidden_states=scheduler.add_noise(latents, noise, timestep),
                encoder_hidden_states=text_encoder(tokens[scene])[0],
                timestep=timestep,
                return_dict=False,
            )[0]
        return functional.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timestep))

    return loss


def assemble(autoencoder: AutoencoderKLCogVideoX, denoiser: nn.ModuleDict) -> CogVideoXPipeline:
    """The parts as they are stored, in one pipeline."""
    return CogVideoXPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=stored_as(torch.float32, denoiser["text_encoder"]),
        vae=stored_as(torch.bfloat16, autoencoder),
        transformer=stored_as(torch.bfloat16, denoiser["transformer"]),
        scheduler=build_scheduler(),
    )
