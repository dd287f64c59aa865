"""The command `s2q generate`."""

from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_options import (
    DeviceOption,
    DtypeOption,
    FramesOption,
    GuidanceOption,
    HeightOption,
    JsonOption,
    SeedOption,
    Source,
    StepsOption,
    Transformer2Option,
    TransformerOption,
    WidthOption,
    call_of,
)
from s2q.cli_work import check_for, open_for, prompt_with, write_summary
from s2q.messages import console


def generate(
    pipeline: Source,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The video file, .mp4.")],
    transformer: TransformerOption = None,
    transformer_2: Transformer2Option = None,
    image: Annotated[Path | None, typer.Option("--image", help="What an image-to-video pipeline begins with.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE", help="A file for another argument of the pipeline; repeat it."),
    ] = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a video."""
    import time

    from s2q.assessment import FPS
    from s2q.evaluation.video import visible_scale, write_mp4
    from s2q.models.folder import PARTS
    from s2q.progress import terminal_progress
    from s2q.twins import generate as make_clip

    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if out.suffix != ".mp4":
        raise ValueError(f"the output must end in .mp4, got {out}")
    asked = prompt_with(prompt, image, inputs or [])
    check_for(pipeline, [asked], PARTS[0])
    opened = open_for(
        pipeline,
        transformer=transformer,
        transformer_2=transformer_2,
        part=PARTS[0],
        device=device,
        dtype=dtype,
        **call_of(steps, guidance_scale, height, width, num_frames),
    )
    opened.check([asked])
    started = time.perf_counter()
    with terminal_progress().stage("denoising", opened.all_steps) as stage:
        clip = make_clip(opened, asked, seed, lambda latents: stage.advance())
    seconds = time.perf_counter() - started
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, FPS, visible_scale(clip))
    console.print(
        f"{out}: {clip.shape[0]} frames {clip.shape[2]}×{clip.shape[1]}, {seconds:.1f} s", markup=False, highlight=False
    )
    write_summary(
        json_file, {"output": str(out), "prompt": prompt, "seed": seed, "shape": list(clip.shape), "seconds": seconds}
    )
