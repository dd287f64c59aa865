"""The commands `s2q generate` and `s2q evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_attention import attending, check_attention
from s2q.cli_options import (
    AestheticClipOption,
    AestheticOption,
    AttentionOption,
    ClipModelOption,
    ClipsOption,
    DeviceOption,
    DinoOption,
    DtypeOption,
    FpsOption,
    FramesOption,
    GuidanceOption,
    HeightOption,
    JsonOption,
    PromptsOption,
    SeedOption,
    Source,
    StepsOption,
    TextEncodersOption,
    TransformerOption,
    VBenchOption,
    VBenchQuantizedOption,
    WidthOption,
    call_of,
)
from s2q.cli_work import chosen_device, comparison_prompts, evaluate_and_print, measures, open_for, write_summary
from s2q.messages import console


def generate(
    pipeline: Source,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The video file, .mp4.")],
    transformer: TransformerOption = None,
    text_encoder: TextEncodersOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = "float",
    json_file: JsonOption = None,
) -> None:
    """Make a video."""
    import time

    from s2q.assessment import FPS
    from s2q.evaluation.video import visible_scale, write_mp4
    from s2q.progress import terminal_progress
    from s2q.twins import generate as make_clip

    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if out.suffix != ".mp4":
        raise ValueError(f"the output must end in .mp4, got {out}")
    check_attention(attention, chosen_device(device))
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, transformer, text_encoder, device=device, dtype=dtype, **call)
    started = time.perf_counter()
    with attending(attention, *opened.transformers), terminal_progress().stage("denoising", opened.steps) as stage:
        clip = make_clip(opened, prompt, seed, lambda latents: stage.advance())
    seconds = time.perf_counter() - started
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, FPS, visible_scale(clip))
    console.print(
        f"{out}: {clip.shape[0]} frames {clip.shape[2]}×{clip.shape[1]}, {seconds:.1f} s", markup=False, highlight=False
    )
    made = {"output": str(out), "prompt": prompt, "seed": seed, "shape": list(clip.shape), "seconds": seconds}
    write_summary(json_file, made | {"attention": attention})


def evaluate(
    pipeline: Source,
    transformer: TransformerOption = None,
    text_encoder: TextEncodersOption = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Default: TRANSFORMER.evaluation.")] = None,
    clips: ClipsOption = 16,
    prompts: PromptsOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = "float",
    clip: ClipModelOption = None,
    dino: DinoOption = None,
    aesthetic: AestheticOption = None,
    aesthetic_clip: AestheticClipOption = None,
    vbench: VBenchOption = None,
    vbench_quantized_only: VBenchQuantizedOption = False,
    fps: FpsOption = 8.0,
    json_file: JsonOption = None,
) -> None:
    """Compare with the full-precision twin, same prompts and seeds: metrics.json, report.json, report.html, clips."""
    quantized = transformer or (text_encoder or [None])[0]
    if quantized is None:
        raise ValueError("nothing to compare: give --transformer, --text-encoder, or both")
    check_attention(attention, chosen_device(device))
    given = comparison_prompts(pipeline, clips, prompts)
    more = measures(clip, dino, aesthetic, aesthetic_clip, vbench, vbench_quantized_only, fps, device)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, None, text_encoder, beside=True, device=device, dtype=dtype, **call)
    out = out or quantized.with_name(quantized.name + ".evaluation")
    more |= {"attention": attention, "text_alone": transformer is None}
    write_summary(json_file, evaluate_and_print(opened, quantized, out, given, clips, seed, {}, **more))
