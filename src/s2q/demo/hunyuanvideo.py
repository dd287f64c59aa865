"""The HunyuanVideo demo's transformer and its two text encoders: dual- and single-stream blocks."""

from __future__ import annotations

import math

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import nn

from s2q.demo.autoencoder import LATENT_CHANNELS
from s2q.demo.export import stored_as
from s2q.demo.flow import SHIFT, FlowFamily
from s2q.demo.hunyuanvideo_text import (
    CLIP_WIDTH,
    build_text_encoder,
    build_text_encoder_2,
    build_tokenizer,
    build_tokenizer_2,
    encode_captions,
    tokenize_captions,
)
from s2q.demo.latents import LatentClips
from s2q.demo.text import WIDTH

_HEAD_WIDTH = 32
_SCALING_FACTOR = 0.476986  # the released autoencoder's


class ExplicitHunyuanAttention:
    """Joint attention in separate matrix products: faster backwards on a CPU than the fused one."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over video [B, S, D] and then text [B, L, D], with own or shared projections; returns both."""
        video_tokens = hidden_states.shape[1]
        own_text = attn.add_q_proj is not None
        video = hidden_states if own_text else torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = self._heads(attn, video, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        query, key = (self._rotate(part, video_tokens, image_rotary_emb) for part in (query, key))
        if own_text:
            text = self._heads(
                attn,
                encoder_hidden_states,
                attn.add_q_proj,
                attn.add_k_proj,
                attn.add_v_proj,
                attn.norm_added_q,
                attn.norm_added_k,
            )
            pairs = zip((query, key, value), text, strict=True)
            query, key, value = (torch.cat(pair, dim=1) for pair in pairs)
        query, key, value = query.transpose(1, 2), key.permute(0, 2, 3, 1), value.transpose(1, 2)
        logits = query @ key / math.sqrt(query.shape[-1])
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask, -torch.inf)
        mixed = (logits.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        video, text = mixed[:, :video_tokens], mixed[:, video_tokens:]
        if own_text:
            return attn.to_out[0](video), attn.to_add_out(text)
        return video, text

    @staticmethod
    def _heads(attn: Attention, states: torch.Tensor, *parts: nn.Module) -> tuple[torch.Tensor, ...]:
        to_q, to_k, to_v, norm_q, norm_k = parts
        query, key, value = (project(states).unflatten(-1, (attn.heads, -1)) for project in (to_q, to_k, to_v))
        return norm_q(query), norm_k(key), value

    @staticmethod
    def _rotate(heads: torch.Tensor, count: int, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        turned = apply_rotary_emb(heads[:, :count], rotary, sequence_dim=1)
        return turned if heads.shape[1] == count else torch.cat([turned, heads[:, count:]], dim=1)


def build_transformer(heads: int = 4, dual: int = 3, single: int = 4) -> HunyuanVideoTransformer3DModel:
    """An untrained transformer over 3x8x8 latents in 2x2 patches: 48 video tokens before 12 text tokens."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=heads,
        attention_head_dim=_HEAD_WIDTH,
        num_layers=dual,
        num_single_layers=single,
        num_refiner_layers=1,
        guidance_embeds=False,
        text_embed_dim=WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        rope_axes_dim=(8, 12, 12),
    )
    # Each block starts as the identity and the model as zero, which lets the learning rate be high from the start.
    silent = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    silent += [block.norm.linear for block in transformer.single_transformer_blocks]
    silent += [block.norm_out.linear for block in transformer.context_embedder.token_refiner.refiner_blocks]
    for linear in [*silent, transformer.proj_out]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def build_denoiser(heads: int = 4, dual: int = 3, single: int = 4) -> nn.ModuleDict:
    """What diffusion training trains: ``transformer``, ``text_encoder`` and ``text_encoder_2``."""
    transformer = build_transformer(heads, dual, single)
    for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
        for block in blocks:
            block.attn.set_processor(ExplicitHunyuanAttention())
    tokenizer = build_tokenizer()
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": build_text_encoder(len(tokenizer), tokenizer.pad_token_id),
            "text_encoder_2": build_text_encoder_2(build_tokenizer_2()),
        }
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The released model's own scheduler, less shifted."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def own_latents(clips: LatentClips) -> LatentClips:
    """Every channel with mean 0 and one standard deviation, since the pipeline knows a scaling factor alone.

    Channels of little variance carry much of shape and motion, and would drown in noise that suits the others.
    """
    return clips.normalized(1 / _SCALING_FACTOR)


def build_autoencoder(_: LatentClips, block_out_channels: tuple[int, ...] = (16, 32, 64)) -> AutoencoderKLHunyuanVideo:
    """An untrained autoencoder: 4x smaller in space and in time, the first frame apart (9 frames give 3)."""
    levels = len(block_out_channels)
    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        block_out_channels=block_out_channels,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=_SCALING_FACTOR,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


def decode(autoencoder: AutoencoderKLHunyuanVideo, latents: torch.Tensor) -> torch.Tensor:
    """What ``autoencoder`` makes of latents [N, C, F', H', W']: [N, 3, F, H, W]."""
    return autoencoder.decode(latents).sample


def assemble(autoencoder: AutoencoderKLHunyuanVideo, denoiser: nn.ModuleDict) -> HunyuanVideoPipeline:
    """The parts as they are stored, in one pipeline."""
    return HunyuanVideoPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=stored_as(torch.float32, denoiser["text_encoder"]),
        tokenizer_2=build_tokenizer_2(),
        text_encoder_2=stored_as(torch.float32, denoiser["text_encoder_2"]),
        vae=stored_as(torch.bfloat16, autoencoder),
        transformer=stored_as(torch.bfloat16, denoiser["transformer"]),
        scheduler=build_scheduler(),
    )


HUNYUANVIDEO = FlowFamily(
    name="hunyuanvideo",
    build_denoiser=build_denoiser,
    tokenize=tokenize_captions,
    encode=encode_captions,
    own_latents=own_latents,
    normalization=lambda _: (0.0, 1 / _SCALING_FACTOR),
    build_autoencoder=build_autoencoder,
    decode=decode,
    taught_guidance=5.0,
    assemble=assemble,
)
