"""Tiny random pipelines that want an image, a video or a control with each prompt, and such files: for mechanics only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny
import torch
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file
from tiny_families import SIZE, make_clip, make_hunyuan_vae, make_llama, make_ltx, make_ltx_vae, make_wan_vae
from tiny_pipelines import (
    HUNYUAN_15,
    LTX2,
    TEXT,
    Guardrail,
    TinyPipeline,
    edm,
    hunyuan_15_parts,
    ltx2_parts,
    make,
    make_cosmos_vae,
    make_hunyuan_15_vae,
    make_ltx2_vae,
    unipc,
)
from tiny_transformers import COGVIDEOX
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from s2q.demo.scenes import Scene, render
from s2q.evaluation.video import write_mp4
from s2q.media import Prompt


def clip_vision() -> dict[str, object]:
    """CLIP's image encoder, three patches and a token of class a side."""
    torch.manual_seed(2)
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
        )
    )
    size = {"height": 16, "width": 16}
    return {"image_encoder": encoder, "image_processor": CLIPImageProcessor(size=size, crop_size=size)}


def cogvideox_scheduler() -> CogVideoXDDIMScheduler:
    """As released."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )


def llava_parts() -> dict[str, object]:
    """HunyuanVideo's text encoders of image to video: a language model that sees, of four patches, and CLIP."""
    _, tokenizer = make_llama()
    marks = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    vision = clip_vision()
    encoder = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text,
            vision_config=vision["image_encoder"].config,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return {
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "image_processor": vision["image_processor"],
        **clip_parts(),
    }


def clip_parts() -> dict[str, object]:
    """HunyuanVideo's second text encoder."""
    text_encoder, tokenizer = make_clip()
    return {"text_encoder_2": text_encoder, "tokenizer_2": tokenizer}


def framepack_parts() -> dict[str, object]:
    """HunyuanVideo's text encoders, and SigLIP's image encoder."""
    text_encoder, tokenizer = make_llama()
    return {"text_encoder": text_encoder, "tokenizer": tokenizer, **siglip(), **clip_parts()}


def siglip() -> dict[str, object]:
    """SigLIP's image encoder of four patches and 16 channels."""
    torch.manual_seed(2)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    size = {"height": 16, "width": 16}
    return {"image_encoder": SiglipVisionModel(vision), "feature_extractor": SiglipImageProcessor(size=size)}


HUNYUAN_I2V = {
    "max_sequence_length": 8,
    "prompt_template": {
        "template": "<|end_header_id|><image><|end_header_id|>{}<|eot_id|><|start_header_id|>a<|end_header_id|>",
        "crop_start": 3,
        "image_emb_start": 1,
        "image_emb_end": 5,
        "image_emb_len": 4,
    },
}
COG = {"num_inference_steps": tiny.STEPS, "height": 16, "width": 16} | TEXT
# The model takes all but 512 tokens of its text for the image's, so that is the only length that these allow.
# Noise, the mask of four frames a latent frame, and the image's latents.
WAN_I2V = {"in_channels": 4 + 4 + 4, "image_dim": 8, "added_kv_proj_dim": 32}
MEDIA_PIPELINES = {
    "cogvideox-i2v": TinyPipeline(
        "CogVideoXImageToVideoPipeline",
        lambda: make("CogVideoXTransformer3DModel", **COGVIDEOX | {"in_channels": 8}),
        tiny.make_vae,
        cogvideox_scheduler,
        COG | {"num_frames": 5},
        (2, 4, 4),
        media=("image",),
    ),
    "consisid": TinyPipeline(
        "ConsisIDPipeline",
        lambda: make("ConsisIDTransformer3DModel", in_channels=8, is_kps=False),
        tiny.make_vae,
        cogvideox_scheduler,
        COG | {"num_frames": 5},
        (2, 4, 4),
        media=("image", "id_cond", "id_vit_hidden"),
    ),
    "cogvideox-1.5-i2v": TinyPipeline(
        "CogVideoXImageToVideoPipeline",
        lambda: make(
            "CogVideoXTransformer3DModel",
            **COGVIDEOX
            | {
                "in_channels": 8,
                "patch_size_t": 2,
                "use_rotary_positional_embeddings": True,
                "patch_bias": False,
                "ofs_embed_dim": 8,
            },
        ),
        tiny.make_vae,
        cogvideox_scheduler,
        COG | {"num_frames": 9},
        (4, 4, 4),
        media=("image",),
    ),
    "cogvideox-v2v": TinyPipeline(
        "CogVideoXVideoToVideoPipeline",
        tiny.make_transformer,
        tiny.make_vae,
        cogvideox_scheduler,
        COG | {"num_inference_steps": 4, "max_sequence_length": tiny.TEXT_LENGTH},
        (2, 4, 4),
        media=("video",),
    ),
    "cogvideox-control": TinyPipeline(
        "CogVideoXFunControlPipeline",
        lambda: make("CogVideoXTransformer3DModel", **COGVIDEOX | {"in_channels": 8}),
        tiny.make_vae,
        cogvideox_scheduler,
        COG,
        (2, 4, 4),
        media=("control_video",),
    ),
    "hunyuan-i2v": TinyPipeline(
        "HunyuanVideoImageToVideoPipeline",
        lambda: make("HunyuanVideoTransformer3DModel", in_channels=4 + 4 + 1, image_condition_type="latent_concat"),
        make_hunyuan_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | HUNYUAN_I2V,
        (2, 4, 4),
        llava_parts,
        media=("image",),
    ),
    "hunyuan-i2v-replaced": TinyPipeline(
        "HunyuanVideoImageToVideoPipeline",
        lambda: make("HunyuanVideoTransformer3DModel", image_condition_type="token_replace"),
        make_hunyuan_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | HUNYUAN_I2V,
        (2, 4, 4),
        llava_parts,
        media=("image",),
    ),
    "hunyuan-skyreels-i2v": TinyPipeline(
        "HunyuanSkyreelsImageToVideoPipeline",
        lambda: make("HunyuanVideoTransformer3DModel", in_channels=4 + 4),
        make_hunyuan_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | {"prompt_template": {"template": "{}", "crop_start": 0}},
        (2, 4, 4),
        lambda: dict(zip(("text_encoder", "tokenizer"), make_llama(), strict=True)) | clip_parts(),
        media=("image",),
    ),
    "hunyuan-1.5-i2v": TinyPipeline(
        "HunyuanVideo15ImageToVideoPipeline",
        lambda: make("HunyuanVideo15Transformer3DModel", in_channels=4 + 4 + 1, image_embed_dim=16, task_type="i2v"),
        make_hunyuan_15_vae,
        FlowMatchEulerDiscreteScheduler,
        {"num_inference_steps": tiny.STEPS, "num_frames": 5},
        (2, 4, 4),
        lambda: hunyuan_15_parts() | siglip(),
        media=("image",),
        fixed=HUNYUAN_15 | {"vision_num_semantic_tokens": 4, "target_size": 16},
    ),
    "framepack": TinyPipeline(
        "HunyuanVideoFramepackPipeline",
        lambda: make("HunyuanVideoFramepackTransformer3DModel"),
        make_hunyuan_vae,
        lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        # Two sections of three latent frames, which stand for nine frames of the video.
        SIZE
        | TEXT
        | {"num_frames": 13, "latent_window_size": 3, "prompt_template": {"template": "{}", "crop_start": 0}},
        (3, 4, 4),
        framepack_parts,
        media=("image",),
    ),
    "cosmos-video": TinyPipeline(
        "CosmosVideoToWorldPipeline",
        lambda: make("CosmosTransformer3DModel", in_channels=4 + 1, concat_padding_mask=True),
        make_cosmos_vae,
        edm,
        SIZE | TEXT,
        (2, 4, 4),
        lambda: {"safety_checker": Guardrail()},
        media=("image",),
    ),
    "cosmos-2": TinyPipeline(
        "Cosmos2VideoToWorldPipeline",
        lambda: make("CosmosTransformer3DModel", in_channels=4 + 1, concat_padding_mask=True),
        make_wan_vae,
        lambda: FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        SIZE | TEXT,
        (2, 4, 4),
        lambda: {"safety_checker": Guardrail()},
        media=("image",),
    ),
    "wan-2.1-i2v": TinyPipeline(
        "WanImageToVideoPipeline",
        lambda: make("WanTransformer3DModel", **WAN_I2V),
        make_wan_vae,
        unipc,
        SIZE,
        (2, 4, 4),
        clip_vision,
        media=("image",),
    ),
    "wan-2.1-flf2v": TinyPipeline(
        "WanImageToVideoPipeline",
        lambda: make("WanTransformer3DModel", **WAN_I2V | {"pos_embed_seq_len": 2 * 5}),
        make_wan_vae,
        unipc,
        SIZE,
        (2, 4, 4),
        clip_vision,
        media=("image", "last_image"),
    ),
    "wan-2.2-i2v": TinyPipeline(
        "WanImageToVideoPipeline",
        lambda: make("WanTransformer3DModel", in_channels=4 + 4 + 4),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (2, 4, 4),
        media=("image",),
    ),
    "wan-2.2-5b-i2v": TinyPipeline(
        "WanImageToVideoPipeline",
        lambda: make("WanTransformer3DModel"),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (2, 4, 4),
        lambda: {"expand_timesteps": True},
        media=("image",),
    ),
    "wan-v2v": TinyPipeline(
        "WanVideoToVideoPipeline",
        lambda: make("WanTransformer3DModel"),
        make_wan_vae,
        unipc,
        {"num_inference_steps": 4, "height": 32, "width": 32} | TEXT,
        (2, 4, 4),
        media=("video",),
    ),
    "wan-vace": TinyPipeline(
        "WanVACEPipeline",
        lambda: make("WanVACETransformer3DModel", vace_in_channels=2 * 4 + 64, vace_layers=[0, 1, 2]),
        make_wan_vae,
        unipc,
        SIZE | TEXT,
        (3, 4, 4),  # a frame of the latent is of the reference image
        media=("video", "mask", "reference_images"),
    ),
    "wan-animate": TinyPipeline(
        "WanAnimatePipeline",
        lambda: make("WanAnimateTransformer3DModel", image_dim=8, added_kv_proj_dim=32),
        make_wan_vae,
        unipc,
        {"num_inference_steps": tiny.STEPS, "height": 32, "width": 32, "segment_frame_length": 5},
        (3, 4, 4),  # a frame of the latent is of the image
        clip_vision,
        media=("image", "pose_video", "face_video"),
    ),
    "skyreels-v2-i2v": TinyPipeline(
        "SkyReelsV2ImageToVideoPipeline",
        lambda: make("SkyReelsV2Transformer3DModel", **WAN_I2V),
        make_wan_vae,
        unipc,
        SIZE,
        (2, 4, 4),
        clip_vision,
        media=("image",),
    ),
    "ltx-i2v": TinyPipeline(
        "LTXImageToVideoPipeline",
        make_ltx,
        make_ltx_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT,
        (2, 4, 4),
        media=("image",),
    ),
    "ltx2-i2v": TinyPipeline(
        "LTX2ImageToVideoPipeline",
        lambda: make("LTX2VideoTransformer3DModel", perturbed_attn=True),
        make_ltx2_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | LTX2,
        (2, 4, 4),
        ltx2_parts,
        media=("image",),
    ),
    "ltx-condition": TinyPipeline(
        "LTXConditionPipeline",
        make_ltx,
        make_ltx_vae,
        FlowMatchEulerDiscreteScheduler,
        SIZE | TEXT | {"num_frames": 9},
        (3, 4, 4),
        media=("image",),
    ),
}


def scene(seed: int) -> list[Image.Image]:
    """The frames of a clip from the demos' world, 32×32."""
    generator = torch.Generator().manual_seed(seed)
    frames = render(Scene.parse("a red square moves left on a grey background"), generator)
    return [Image.fromarray(frame.numpy()) for frame in frames]


def write_image(path: Path, seed: int = 0) -> Path:
    """An image, 32×32."""
    scene(seed)[0].save(path)
    return path


def write_video(path: Path, frames: int, seed: int = 0) -> Path:
    """A video of `frames` frames, 32×32."""
    shown = (scene(seed) * frames)[:frames]
    write_mp4(path, np.stack([np.asarray(frame) for frame in shown]), 8)
    return path


def write_face(path: Path, seed: int = 0) -> Path:
    """What ConsisID knows of a face, in a file of the tiny transformer's widths."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"id_cond": torch.randn(1, 4, generator=generator)}
    save_file(tensors | {"id_vit_hidden.0": torch.randn(1, 4, 4, generator=generator)}, path)
    return path


def with_media(prompts: Sequence[str], media: Sequence[str], folder: Path, frames: int = 5) -> list[str]:
    """The prompts, each with files of its own in `folder` for the arguments `media`."""
    made = []
    for number, prompt in enumerate(prompts):
        files = {}
        for name in media:
            if name.startswith("id_"):
                files[name] = write_face(folder / f"face-{number}.safetensors", number)
            elif "image" in name:
                files[name] = write_image(folder / f"{name}-{number}.png", number)
            else:
                files[name] = write_video(folder / f"{name}-{number}.mp4", frames, number)
        made.append(Prompt(prompt, **files) if files else prompt)
    return made
