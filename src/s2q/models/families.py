"""The families: rows of data."""

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
        text_width="text_dim",
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
    )
)
