"""S²Q: video diffusion transformers in few bits. Importing it teaches diffusers to load s2q checkpoints."""

from s2q.recipe import Recipe
from s2q.recipes import recipe
from s2q.runtime.diffusers import register

register()

__version__ = "0.1.0"
__all__ = ["Recipe", "recipe"]
