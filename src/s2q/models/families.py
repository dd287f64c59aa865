"""The families: rows of data."""

from s2q.models.family import Family, register

COGVIDEOX = register(
    Family(
        name="cogvideox",
        model_classes=("CogVideoXTransformer3DModel",),
        block_lists=("transformer_blocks",),
        states=("hidden_states", "encoder_hidden_states"),
        tokens=("encoder_hidden_states", "hidden_states"),
        self_attention="attn1",
        shared_inputs=(("attn1.to_q", "attn1.to_k", "attn1.to_v"),),
        modulation=("norm1.linear", "norm2.linear"),
    )
)
