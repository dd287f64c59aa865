"""Released transformers by their published configuration, in diffusers' own words: what studies of real sizes build."""

from typing import Any

import diffusers
from torch import nn

COGVIDEOX, HUNYUANVIDEO, WAN = (
    {"_class_name": f"{name}Transformer3DModel"} for name in ("CogVideoX", "HunyuanVideo", "Wan")
)
MODELS: dict[str, dict[str, Any]] = {
    "CogVideoX-2B": COGVIDEOX | {"num_attention_heads": 30, "num_layers": 30},
    "CogVideoX-5B": COGVIDEOX | {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    "HunyuanVideo": HUNYUANVIDEO,
    "Wan-14B": WAN,
}
"""What stands beside a class is what departs from its defaults."""


def class_and_config(config: dict[str, Any]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class that a configuration names, and the rest of it."""
    given = {name: value for name, value in config.items() if name != "_class_name"}
    return getattr(diffusers, config["_class_name"]), given
