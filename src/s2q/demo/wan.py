"""The Wan demo's transformer and text encoder: self-attention over video, cross-attention to text."""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from s2q.demo.autoencoder import LATENT_CHANNELS
from s2q.demo.export import stored_as
from s2q.demo.flow import SHIFT, FlowFamily
from s2q.demo.latents import LatentClips
from s2q.demo.text import MAX_TEXT_TOKENS, WIDTH, build_tokenizer

_HEAD_WIDTH = 32


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions on [B, S, H, D], pairs of neighbouring channels."""
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2].to(heads.dtype), sin[..., 1::2].to(heads.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class ExplicitWanAttention:
    """Wan's attention in separate matrix products: faster backwards on a CPU than the fused one."""

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Self-attention, or cross-attention to [B, L, D]; returns [B, S, D]."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source))
        query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in (query, key, attn.to_v(source)))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        query, key, value = query.transpose(1, 2), key.permute(0, 2, 3, 1), value.transpose(1, 2)
        weights = (query @ key / math.sqrt(query.shape[-1])).softmax(dim=-1).to(value.dtype)
        return attn.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def build_transformer(heads: int = 5, layers: int = 6) -> WanTransformer3DModel:
    """An untrained transformer over 3x8x8 latents in 2x2 patches: 48 video tokens that look at 16 text tokens."""
    width = heads * _HEAD_WIDTH
    transformer = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=_HEAD_WIDTH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=4 * width,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    # Each block starts as the identity and the model as zero, which lets the learning rate be high from the start.
    embedder = transformer.condition_embedder
    with torch.no_grad():
        for block in transformer.blocks:
            block.scale_shift_table.zero_()
    silent = [embedder.time_proj, transformer.proj_out, *(block.attn2.to_out[0] for block in transformer.blocks)]
    for linear in silent:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def build_text_encoder(vocabulary: int, layers: int = 2) -> UMT5EncoderModel:
    """An untrained UMT5 encoder for ``vocabulary`` pieces, without dropout."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=16,
            num_heads=4,
            d_ff=2 * WIDTH,
            num_layers=layers,
            dropout_rate=0.0,
        )
    )


def build_denoiser(heads: int = 5, layers: int = 6) -> nn.ModuleDict:
    """What diffusion training trains: ``transformer`` and ``text_encoder``."""
    transformer = build_transformer(heads, layers)
    transformer.set_attn_processor(ExplicitWanAttention())
    return nn.ModuleDict({"transformer": transformer, "text_encoder": build_text_encoder(len(build_tokenizer()))})


def build_scheduler() -> UniPCMultistepScheduler:
    """The released models' own scheduler: UniPC along the flow, shifted towards the noisy end."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)


def tokenize_captions(captions: list[str]) -> dict[str, torch.Tensor]:
    """Token ids and mask, int64 [N, MAX_TEXT_TOKENS], padded as ``WanPipeline`` pads them."""
    found = build_tokenizer()(
        captions, padding="max_length", max_length=MAX_TEXT_TOKENS, truncation=True, return_tensors="pt"
    )
    return {"input_ids": found.input_ids, "attention_mask": found.attention_mask}


def encode_captions(denoiser: nn.ModuleDict, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The transformer's condition, as ``WanPipeline`` makes it: padding is set to zero, not masked."""
    states = denoiser["text_encoder"](**tokens).last_hidden_state
    return {"encoder_hidden_states": states * tokens["attention_mask"].unsqueeze(-1)}


def build_autoencoder(clips: LatentClips, base_dim: int = 16) -> AutoencoderKLWan:
    """An untrained autoencoder: 4x smaller in space and in time, the first frame apart (9 frames give 3)."""
    mean, std = clips.statistics()
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=mean.flatten().tolist(),
        latents_std=std.flatten().tolist(),
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def decode(autoencoder: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """``autoencoder.decode`` without its clamp, behind which a loss has no gradient: [N, 3, F, H, W]."""
    autoencoder.clear_cache()
    states, parts = autoencoder.post_quant_conv(latents), []
    for frame in range(states.shape[2]):
        autoencoder._conv_idx = [0]
        parts.append(
            autoencoder.decoder(
                states[:, :, frame : frame + 1],
                feat_cache=autoencoder._feat_map,
                feat_idx=autoencoder._conv_idx,
                first_chunk=frame == 0,
            )
        )
    autoencoder.clear_cache()
    return torch.cat(parts, dim=2)


def assemble(autoencoder: AutoencoderKLWan, denoiser: nn.ModuleDict) -> WanPipeline:
    """The parts as they are stored, in one pipeline."""
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=stored_as(torch.float32, denoiser["text_encoder"]),
        vae=stored_as(torch.bfloat16, autoencoder),
        transformer=stored_as(torch.bfloat16, denoiser["transformer"]),
        scheduler=build_scheduler(),
    )


WAN = FlowFamily(
    name="wan",
    build_denoiser=build_denoiser,
    tokenize=tokenize_captions,
    encode=encode_captions,
    own_latents=lambda clips: clips,
    normalization=LatentClips.statistics,
    build_autoencoder=build_autoencoder,
    decode=decode,
    taught_guidance=1.0,
    assemble=assemble,
)
