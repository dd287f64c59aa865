"""A tiny random CogVideoX pipeline on disk: for mechanics only, never for figures of quality."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

TEXT_LENGTH = 8
WORDS = ("a", "red", "blue", "square", "circle", "moves", "left", "right")


def make_transformer(**changes) -> CogVideoXTransformer3DModel:
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


def make_pipeline(folder: Path) -> Path:
    """Save a complete pipeline around `make_transformer` into `folder`."""
    torch.manual_seed(1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    tokenizer = T5Tokenizer(vocab=pieces + [(f"▁{word}", -1.0) for word in WORDS], extra_ids=0)
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = AutoencoderKLCogVideoX(
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
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=make_transformer(), scheduler=scheduler
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """Folder of the tiny pipeline; tests must not change it."""
    return make_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def transformer() -> CogVideoXTransformer3DModel:
    """A fresh tiny transformer."""
    return make_transformer()
