"""Score a pipeline with the official VBench: make its videos with both transformers, let it judge, keep all of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from s2q.evaluation.vbench import COLUMNS, Official, judge, video_name
from s2q.evaluation.video import write_mp4
from s2q.models.pipelines import OpenPipeline
from s2q.progress import Progress
from s2q.storage import fingerprint, replacing
from s2q.twins import generate
from s2q.workspace import Workspace


def vbench_scores(
    opened: OpenPipeline,
    quantized: nn.Module,
    official: Official,
    folder: Path,
    *,
    seed: int,
    fps: float,
    made_with: Mapping[str, Any],
    quantized_only: bool,
    progress: Progress,
    second: nn.Module | None = None,
) -> dict[str, Any]:
    """One video a prompt and transformer, the n-th from seed `seed` + n, scored; what stands in `folder` is kept.

    `folder` holds `float` and `quantized`, and in each `videos`, `results` (the official files) and `vbench.log`.

    Args:
        opened: the pipeline with its full-precision transformer, which it has again afterwards.
        fps: written into the files; VBench's dynamic degree depends on it.
        made_with: what else the videos depend on; a folder of other settings is refused.
        quantized_only: leave the full-precision pipeline out.
        second: a quantized `transformer_2` that works together with `quantized`.

    Returns:
        `version`, `videos` (how many a transformer), `fps` and `scores`: side → dimension → score times 100.

    Raises:
        WorkspaceError: `folder` belongs to other settings.
        VBenchError: the official package failed.
    """
    settings = {"seed": seed, "fps": fps, "prompts": fingerprint(official.prompts), "version": official.version}
    Workspace.open(folder, {**made_with, **settings})
    sides = {"quantized": quantized} if quantized_only else {"float": opened.transformer, "quantized": quantized}
    scores = {}
    for side, transformer in sides.items():
        with opened.using(transformer, second if side == "quantized" else None):
            _make_videos(opened, official, folder / side / "videos", seed, fps, progress, side)
        with progress.stage(f"vbench_{side}", len(COLUMNS)) as stage:
            scores[side] = judge(
                official,
                folder / side / "videos",
                folder / side / "results",
                folder / side / "vbench.log",
                lambda dimension, stage=stage: stage.advance(note=dimension),
            )
    return {"version": official.version, "videos": len(official.prompts), "fps": fps, "scores": scores}


def _make_videos(
    opened: OpenPipeline,
    official: Official,
    folder: Path,
    seed: int,
    fps: float,
    progress: Progress,
    side: str,
) -> None:
    with progress.stage(f"videos_{side}", len(official.prompts)) as stage:
        for index, prompt in enumerate(official.prompts):
            path = folder / video_name(prompt)
            if not path.is_file():
                clip = generate(opened, prompt, seed + index)
                with replacing(path) as temporary:
                    write_mp4(temporary, clip, fps)
            stage.advance()
