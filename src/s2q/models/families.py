"""The families: rows of data."""

from dataclasses import replace

from s2q.models.family import Family, register

COGVIDEOX = register(
    Family(
        name="cogvideox",
        pipeline="CogVideoXPipeline",
        model_classes=("CogVideoXTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states", "encoder_hidden_states"),
        tokens=("encoder_hidden_states", "hidden_states"),
        self_attention="attn1",
        shared_inputs=(("attn1.to_q", "attn1.to_k", "attn1.to_v"),),
        modulation=("norm1.linear", "norm2.linear"),
        layout="FChw",
        text_length="max_text_seq_length",
    )
)
WAN = register(
    Family(
        name="wan",
        pipeline="WanPipeline",
        model_classes=("WanTransformer3DModel",),
        block_lists=("blocks",),
        states=("hidden_states",),
        tokens=("hidden_states",),
        self_attention="attn1",
        shared_inputs=(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            ("attn2.to_k", "attn2.to_v"),
            ("attn2.add_k_proj", "attn2.add_v_proj"),  # image to video
        ),
        text_linears=("attn2.to_k", "attn2.to_v", "attn2.add_?_proj"),
        batched=("encoder_hidden_states_image",),  # of the first frame, and of the last where it is given
        text_width="text_dim",
        fps=16.0,
    )
)
HUNYUAN_VIDEO = register(
    Family(
        name="hunyuan_video",
        pipeline="HunyuanVideoPipeline",
        model_classes=("HunyuanVideoTransformer3DModel",),
        block_lists=("transformer_blocks", "single_transformer_blocks"),
        states=("hidden_states", "encoder_hidden_states"),
        tokens=("hidden_states", "encoder_hidden_states"),
        self_attention="attn",
        shared_inputs=(
            ("attn.to_q", "attn.to_k", "attn.to_v"),
            ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),  # of text, in the dual blocks alone
        ),
        modulation=("norm1.linear", "norm1_context.linear", "norm.linear"),
        text_linears=("attn.add_?_proj", "attn.to_add_out", "ff_context.*"),
        guidance="true_cfg_scale",  # guidance_scale is an embedding here, and costs no second branch
        fps=15.0,
    )
)
CONSISID = register(
    replace(COGVIDEOX, name="consisid", pipeline="ConsisIDPipeline", model_classes=("ConsisIDTransformer3DModel",))
)
WAN_VACE = register(
    replace(
        WAN,
        name="wan_vace",
        pipeline="WanVACEPipeline",
        model_classes=("WanVACETransformer3DModel",),
        block_lists=("vace_blocks", "blocks"),  # control first: what it makes is added to the video after some blocks
        states=("hidden_states", "control_hidden_states"),
        tokens=("hidden_states", "control_hidden_states"),
    )
)
WAN_ANIMATE = register(
    replace(
        WAN,
        name="wan_animate",
        pipeline="WanAnimatePipeline",
        model_classes=("WanAnimateTransformer3DModel",),
        fps=30.0,
    )
)
SKYREELS_V2 = register(
    replace(
        WAN,
        name="skyreels_v2",
        pipeline="SkyReelsV2Pipeline",
        model_classes=("SkyReelsV2Transformer3DModel",),
        fps=24.0,
    )
)
FRAMEPACK = register(
    replace(
        HUNYUAN_VIDEO,
        name="hunyuan_framepack",
        pipeline="HunyuanVideoFramepackPipeline",
        model_classes=("HunyuanVideoFramepackTransformer3DModel",),
        fps=30.0,
    )
)
HUNYUAN_VIDEO_15 = register(
    replace(
        HUNYUAN_VIDEO,
        name="hunyuan_video_15",
        pipeline="HunyuanVideo15Pipeline",
        model_classes=("HunyuanVideo15Transformer3DModel",),
        block_lists=("transformer_blocks",),
        guidance=None,  # a guider component of the pipeline holds the scale
        fps=24.0,
    )
)
LTX = register(
    Family(
        name="ltx",
        pipeline="LTXPipeline",
        model_classes=("LTXVideoTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states",),
        tokens=("hidden_states",),
        self_attention="attn1",
        shared_inputs=(("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn2.to_k", "attn2.to_v")),
        text_linears=("attn2.to_k", "attn2.to_v"),
        layout="SC",
        text_width="caption_channels",
        fps=24.0,
    )
)
LTX2 = register(
    Family(
        name="ltx2",
        pipeline="LTX2Pipeline",
        model_classes=("LTX2VideoTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states", "audio_hidden_states"),
        tokens=("hidden_states", "audio_hidden_states"),
        self_attention="attn1",
        shared_inputs=(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            ("audio_attn1.to_q", "audio_attn1.to_k", "audio_attn1.to_v"),
            ("attn2.to_k", "attn2.to_v"),
            ("audio_attn2.to_k", "audio_attn2.to_v"),
            ("audio_to_video_attn.to_k", "audio_to_video_attn.to_v"),
            ("video_to_audio_attn.to_k", "video_to_audio_attn.to_v"),
        ),
        text_linears=("attn2.to_k", "attn2.to_v", "audio_attn2.to_k", "audio_attn2.to_v"),
        layout="SC",
        text_width="caption_channels",
        fps=24.0,
        call_defaults={"num_frames": 121},  # where no part of the pipeline foretells how long a video the prompt wants
        further_calls=(
            (("stg_scale", "audio_stg_scale"), 0.0),  # some blocks without self-attention
            (("modality_scale", "audio_modality_scale"), 1.0),  # video and sound without one another
        ),
    )
)
MOCHI = register(
    Family(
        name="mochi",
        pipeline="MochiPipeline",
        model_classes=("MochiTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states", "encoder_hidden_states"),
        tokens=("hidden_states", "encoder_hidden_states"),
        self_attention="attn1",
        shared_inputs=(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
        ),
        modulation=("norm1.linear", "norm1_context.linear", "norm1_context.linear_1"),
        text_linears=("attn1.add_?_proj", "attn1.to_add_out", "ff_context.*"),
        call_defaults={"height": 480, "width": 848},
        fps=30.0,
    )
)
ALLEGRO = register(
    replace(
        LTX,
        name="allegro",
        pipeline="AllegroPipeline",
        model_classes=("AllegroTransformer3DModel",),
        layout="CFhw",
        call_defaults={"num_frames": 88},  # sample_frames counts those of the latent here
        tiled_vae=True,
        fps=15.0,
    )
)
LATTE = register(
    replace(
        LTX,
        name="latte",
        layout="CFhw",
        pipeline="LattePipeline",
        model_classes=("LatteTransformer3DModel",),
        # The model runs them in turn, a spatial and a temporal one.
        block_lists=("transformer_blocks", "temporal_transformer_blocks"),
        interleaved=True,
        fps=8.0,
    )
)
COSMOS = register(
    replace(
        LTX,
        name="cosmos",
        layout="CFhw",
        pipeline="CosmosTextToWorldPipeline",
        model_classes=("CosmosTransformer3DModel",),
        modulation=("norm?.linear_1", "norm?.linear_2"),
        shared=("padding_mask",),
        packages=("cosmos_guardrail", "torchvision"),
        text_width="text_embed_dim",
        fps=16.0,
    )
)
EASYANIMATE = register(
    Family(
        name="easyanimate",
        pipeline="EasyAnimatePipeline",
        model_classes=("EasyAnimateTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states", "encoder_hidden_states"),
        tokens=("encoder_hidden_states", "hidden_states"),
        self_attention="attn1",
        shared_inputs=(
            ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
        ),
        modulation=("norm1.linear", "norm2.linear"),
        text_linears=("attn1.add_?_proj", "attn1.to_add_out", "txt_ff.*"),
        call={"negative_prompt": ""},  # None is what its pipeline stumbles over
    )
)
