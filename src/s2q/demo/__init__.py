"""Tiny trained text-to-video pipelines, one of each family, and the synthetic world they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_SIZE: Final[dict[str, Any]] = {"height": 32, "width": 32, "num_frames": 9}

GENERATION: Final[dict[str, dict[str, Any]]] = {
    "cogvideox": {"num_inference_steps": 20, "guidance_scale": 3.0, "max_sequence_length": 16},
    "wan": {**_SIZE, "num_inference_steps": 20, "guidance_scale": 3.0, "max_sequence_length": 16},
    "hunyuanvideo": {
        **_SIZE,
        "num_inference_steps": 20,
        "max_sequence_length": 12,
        "prompt_template": {"template": "{}", "crop_start": 0},
    },
}
"""By family, the arguments of a pipeline call with which the model card's scores were measured."""


def expected_dir(name: str) -> Path:
    """Where a demo pipeline belongs: inside the package, or beside the source in ``demos``."""
    here = Path(__file__).parent
    return here / "pipeline" if name == "cogvideox" else here.parents[2] / "demos" / name


def pipeline_dir(name: str = "cogvideox") -> Path:
    """The folder of a demo pipeline, ready for ``DiffusionPipeline.from_pretrained``.

    Args:
        name: a key of :data:`GENERATION`. ``cogvideox`` comes with every installation, the others with a source checkout.

    Raises:
        ValueError: no such demo.
        FileNotFoundError: this installation has no such folder.
    """
    if name not in GENERATION:
        raise ValueError(f"there is no demo {name!r}; there are {', '.join(GENERATION)}")
    folder = expected_dir(name)
    if not (folder / "model_index.json").is_file():
        origin = "the source tree and the wheel" if name == "cogvideox" else "a source checkout, not with the wheel"
        raise FileNotFoundError(
            f"the demo pipeline {name} is not at {folder}. It comes with {origin}; "
            f"train it anew with `python -m s2q.demo.train --family {name}`."
        )
    return folder
