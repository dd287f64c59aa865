"""S²Q: video diffusion transformers in few bits. Importing it teaches diffusers and transformers to load s2q checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s2q.runtime.registration import register as register
from s2q.runtime.registration import register_when_imported
from s2q.version import VERSION as __version__

if TYPE_CHECKING:
    from s2q.assessment import evaluate
    from s2q.live import quantize
    from s2q.media import Prompt
    from s2q.models.family import Family
    from s2q.models.pipelines import load_transformer, open_pipeline
    from s2q.planning import plan
    from s2q.recipe import Recipe
    from s2q.recipes import get_recipe
    from s2q.runtime.attention import int8_attention

# Name → module. Loaded when first asked for: whoever only loads a checkpoint need not wait for the rest.
_ROOMS = {
    "Family": "s2q.models.family",
    "Prompt": "s2q.media",
    "Recipe": "s2q.recipe",
    "evaluate": "s2q.assessment",
    "load_transformer": "s2q.models.pipelines",
    "open_pipeline": "s2q.models.pipelines",
    "plan": "s2q.planning",
    "quantize": "s2q.live",
    "get_recipe": "s2q.recipes",
    "int8_attention": "s2q.runtime.attention",
}

__all__ = [
    "Family",
    "Prompt",
    "Recipe",
    "__version__",
    "evaluate",
    "get_recipe",
    "int8_attention",
    "load_transformer",
    "open_pipeline",
    "plan",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 's2q' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


register_when_imported()
