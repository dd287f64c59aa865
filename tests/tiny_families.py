"""A tiny random pipeline of every family, and how it is called: for mechanics only, never for quality."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.modeling_utils import ModelMixin
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

SIZE = {"num_inference_steps": tiny.STEPS, "height": 32, "width": 32, "num_frames": 5}
TEXT_LENGTH = 6  # not the number of video tokens, so that neither passes for the other


@dataclass(frozen=True)
class TinyFamily:
    """How the tests make and call one architecture."""

    make_transformer: Callable[..., ModelMixin]
    make_inputs: Callable[..., dict[str, Tensor]]
    make_pipeline: Callable[[Path], Path]
    call: Mapping[str, Any]
    video_tokens: int
    """Of one clip made with `call`."""
    text_tokens: int
    """In self-attention."""
    branches: int


def make_wan(**changes: Any) -> WanTransformer3DModel:
    """Two blocks, 32 channels, weights from a fixed seed."""
    torch.manual_seed(0)
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 24,
        "freq_dim": 16,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**(config | changes)).eval()


def make_wan_inputs(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of one call of `make_wan()`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, 2, 4, 4, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, 24, generator=generator),
        "timestep": torch.full((batch,), 500),
    }


def make_hunyuan(**changes: Any) -> HunyuanVideoTransformer3DModel:
    """Two dual blocks and two single ones, 32 channels, weights from a fixed seed."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": 24,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
    return HunyuanVideoTransformer3DModel(**(config | changes)).eval()


def make_hunyuan_inputs(batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of one call of `make_hunyuan()`; the rows have texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[5], [3]])[:batch]
    return {
        "hidden_states": torch.randn(batch, 4, 2, 4, 4, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, 24, generator=generator),
        "encoder_attention_mask": (torch.arange(TEXT_LENGTH) < lengths).float(),
        "pooled_projections": torch.randn(batch, 8, generator=generator),
        "timestep": torch.full((batch,), 500.0),
        "guidance": torch.full((batch,), 6000.0),
    }


def make_ltx(**changes: Any) -> LTXVideoTransformer3DModel:
    """Two blocks, 32 channels, weights from a fixed seed."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 24,
        "num_layers": 2,
    }
    return LTXVideoTransformer3DModel(**(config | changes)).eval()


def make_ltx_inputs(batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """Arguments of one call of `make_ltx()`: the latents are tokens already; the rows have texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[5], [3]])[:batch]
    return {
        "hidden_states": torch.randn(batch, 2 * 4 * 4, 4, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TEXT_LENGTH, 24, generator=generator),
        "encoder_attention_mask": (torch.arange(TEXT_LENGTH) < lengths).long(),
        "timestep": torch.full((batch,), 500),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def make_ltx_vae() -> AutoencoderKLLTXVideo:
    """Four channels, an eighth of the pixels a side."""
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )


def make_ltx_pipeline(folder: Path) -> Path:
    """Save a complete pipeline around `make_ltx` into `folder`."""
    torch.manual_seed(1)
    tokenizer = tiny.make_tokenizer()
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = make_ltx_vae()
    pipe = LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=make_ltx(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def make_wan_vae() -> AutoencoderKLWan:
    """Four channels, unit statistics."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def make_wan_pipeline(folder: Path, **settings: Any) -> Path:
    """Save a complete pipeline around `make_wan` into `folder`."""
    torch.manual_seed(1)
    tokenizer = tiny.make_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = make_wan_vae()
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        transformer=make_wan(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        **settings,
    )
    pipe.save_pretrained(folder)
    return folder


def make_llama() -> tuple[LlamaModel, PreTrainedTokenizerFast]:
    """A text encoder of 24 channels and three layers, and a tokenizer that knows `tiny.WORDS`."""
    torch.manual_seed(1)
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *tiny.WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text_encoder = LlamaModel(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    return text_encoder, PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def make_clip() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """A text encoder of 8 channels and a tokenizer that knows the letters."""
    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    letters |= {f"{letter}</w>": len(letters) + index for letter, index in letters.items()}
    letters |= {"<|startoftext|>": len(letters), "<|endoftext|>": len(letters) + 1}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(letters),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=len(letters) - 2,
            eos_token_id=len(letters) - 1,
        )
    )
    return text_encoder, CLIPTokenizer(vocab=letters, merges=[])


def make_hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """Four channels, an eighth of the pixels a side."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def make_hunyuan_pipeline(folder: Path) -> Path:
    """Save a complete pipeline around `make_hunyuan` into `folder`."""
    text_encoder, tokenizer = make_llama()
    text_encoder_2, tokenizer_2 = make_clip()
    pipe = HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        vae=make_hunyuan_vae(),
        transformer=make_hunyuan(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipe.save_pretrained(folder)
    return folder


FAMILIES = {
    "cogvideox": TinyFamily(
        tiny.make_transformer,
        tiny.make_inputs,
        tiny.make_pipeline,
        tiny.CALL,
        video_tokens=2 * 2 * 2,
        text_tokens=tiny.TEXT_LENGTH,
        branches=2,
    ),
    "wan": TinyFamily(
        make_wan,
        make_wan_inputs,
        make_wan_pipeline,
        SIZE | {"max_sequence_length": TEXT_LENGTH},
        video_tokens=2 * 2 * 2,
        text_tokens=0,
        branches=2,
    ),
    "ltx": TinyFamily(
        make_ltx,
        make_ltx_inputs,
        make_ltx_pipeline,
        SIZE | {"max_sequence_length": TEXT_LENGTH},
        video_tokens=2 * 4 * 4,
        text_tokens=0,
        branches=2,
    ),
    "hunyuan_video": TinyFamily(
        make_hunyuan,
        make_hunyuan_inputs,
        make_hunyuan_pipeline,
        # The default template is as long as the released tokenizer makes it.
        SIZE | {"max_sequence_length": TEXT_LENGTH, "prompt_template": {"template": "{}", "crop_start": 0}},
        video_tokens=2 * 2 * 2,
        text_tokens=TEXT_LENGTH,
        branches=1,
    ),
}
