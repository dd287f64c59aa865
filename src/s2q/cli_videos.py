"""The commands `s2q generate` and `s2q evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_attention import attending, check_attention
from s2q.cli_open import chosen_device, open_for
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
    Transformer2Option,
    TransformerOption,
    VBenchOption,
    VBenchQuantizedOption,
    WidthOption,
    call_of,
)
from s2q.cli_work import check_for, comparison_prompts, evaluate_and_print, measures, prompt_with, write_summary
from s2q.messages import console


def generate(
    pipeline: Source,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The video file, .mp4.")],
    transformer: TransformerOption = None,
    transformer_2: Transformer2Option = None,
    text_encoder: TextEncodersOption = None,
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
    attention: AttentionOption = "float",
    fps: FpsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make a video."""
    import time

    from s2q.evaluation.video import visible_scale, write_mp4
    from s2q.models.folder import PARTS
    from s2q.progress import terminal_progress
    from s2q.twins import generate_with_sound

    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if out.suffix != ".mp4":
        raise ValueError(f"the output must end in .mp4, got {out}")
    check_attention(attention, chosen_device(device))
    asked = prompt_with(prompt, image, inputs or [])
    check_for(pipeline, [asked], PARTS[0])
    opened = open_for(
        pipeline,
        transformer=transformer,
        text_encoders=text_encoder,
        transformer_2=transformer_2,
        part=PARTS[0],
        device=device,
        dtype=dtype,
        **call_of(steps, guidance_scale, height, width, num_frames),
    )
    opened.check([asked])
    started = time.perf_counter()
    with attending(attention, *opened.transformers), terminal_progress().stage("denoising", opened.all_steps) as stage:
        clip, sound = generate_with_sound(opened, asked, seed, lambda latents: stage.advance())
    seconds = time.perf_counter() - started
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, fps or opened.fps, visible_scale(clip), sound)
    heard = "" if sound is None else ", with sound"
    console.print(
        f"{out}: {clip.shape[0]} frames {clip.shape[2]}×{clip.shape[1]}{heard}, {seconds:.1f} s",
        markup=False,
        highlight=False,
    )
    made = {"output": str(out), "prompt": prompt, "seed": seed, "shape": list(clip.shape), "seconds": seconds}
    write_summary(json_file, made | {"attention": attention})


def evaluate(
    pipeline: Source,
    transformer: TransformerOption = None,
    transformer_2: Transformer2Option = None,
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
    fps: FpsOption = None,
    json_file: JsonOption = None,
) -> None:
    """Compare with the full-precision twin, same prompts and seeds: metrics.json, report.json, report.html, clips."""
    from s2q.models.folder import PARTS

    folder = transformer or transformer_2 or (text_encoder or [None])[0]
    if folder is None:
        raise ValueError("nothing to compare: give --transformer, --transformer-2, --text-encoder, or several of them")
    check_attention(attention, chosen_device(device))
    alone = not transformer and not transformer_2
    part = PARTS[0] if transformer or alone else PARTS[1]
    given = comparison_prompts(pipeline, clips, prompts, part)
    more = measures(clip, dino, aesthetic, aesthetic_clip, vbench, vbench_quantized_only, fps, device)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, text_encoders=text_encoder, beside=True, device=device, dtype=dtype, part=part, **call)
    out = out or folder.with_name(folder.name + ".evaluation")
    more |= {"second": transformer_2 if transformer else None, "attention": attention, "text_alone": alone}
    write_summary(json_file, evaluate_and_print(opened, folder, out, given, clips, seed, {}, **more))
