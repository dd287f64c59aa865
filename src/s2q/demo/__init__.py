"""The bundled demo: a tiny trained text-to-video pipeline and the synthetic world it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

GENERATION: Final[dict[str, float | int]] = {"num_inference_steps": 20, "guidance_scale": 3.0}
"""The settings the pipeline's scores were measured with; pass ``max_sequence_length=16`` besides."""


def pipeline_dir() -> Path:
    """The folder of the bundled ``CogVideoXPipeline``; raises ``FileNotFoundError`` where it was not installed."""
    folder = Path(__file__).parent / "pipeline"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the bundled demo pipeline is not at {folder}. It comes with the source tree and the wheel; "
            "train it anew with `python -m s2q.demo.train`."
        )
    return folder
