"""How the folders of tests/golden were made: `python tests/golden_maker.py OUT RECIPE BITS [FIELD=VALUE …]`, once a
format version.

Run with the `src` and `tests` of the commit whose format is to be kept on the path. Never run it again for an old version:
the point of those files is that they are old.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import tiny
import torch
from safetensors.torch import save_file

from s2q.models.pipelines import open_pipeline
from s2q.numerics.packing import unpack
from s2q.run import quantize
from s2q.runtime.linear import QuantLinear

SMALL = {"num_attention_heads": 1, "num_layers": 1, "time_embed_dim": 8}


def make(out: Path, recipe: str, bits: str, *changes: str) -> None:
    """Quantize the smallest transformer, and note its codes and what it answers."""
    whole = tiny.make_transformer
    tiny.make_transformer = lambda **changes: whole(**(SMALL | changes))
    with TemporaryDirectory() as folder:
        pipeline = tiny.make_pipeline(Path(folder) / "pipeline")
        opened = open_pipeline(str(pipeline), **tiny.CALL)
        quantize(opened, tiny.cheap(recipe, bits, *changes), out, prompts=tiny.PROMPTS, work=Path(folder) / "work")
    model = diffusers.CogVideoXTransformer3DModel.from_pretrained(out).eval()
    with torch.no_grad():
        expected = {"output": model(**tiny.make_inputs(), return_dict=False)[0].contiguous()}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            expected[name] = unpack(module.weight_packed, module.scheme.weight_bits, module.in_features)
    save_file(expected, out / "expected.safetensors")


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
