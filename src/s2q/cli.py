"""The command line: plan, quantize, quantize-text, generate, evaluate, run, compare, export."""

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from s2q.cli_bench import bench
from s2q.cli_compare import compare
from s2q.cli_export import export
from s2q.cli_options import (
    AestheticClipOption,
    AestheticOption,
    BitsOption,
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
    Overrides,
    PartOption,
    PromptsOption,
    RecipeOption,
    SeedOption,
    Source,
    StepsOption,
    StreamOption,
    TextEncodersOption,
    TransformerOption,
    VBenchOption,
    VBenchQuantizedOption,
    WidthOption,
    call_of,
)
from s2q.cli_text import planned_text, quantize_text
from s2q.cli_work import (
    chosen_recipe,
    comparison_prompts,
    evaluate_and_print,
    measures,
    open_for,
    prepare,
    write_summary,
)
from s2q.messages import USER_ERRORS, console, duration, errors, print_storage, size, table
from s2q.ranks import speaks

app = typer.Typer(
    help="Run video diffusion transformers in few bits without losing the video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


app.command()(quantize_text)
app.command()(compare)
app.command()(bench)
app.command()(export)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2, an interruption status 130."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' notes to developers
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    console.quiet = not speaks()
    try:
        app(standalone_mode=True)
    except USER_ERRORS as error:
        errors.print(f"[bold red]s2q:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _interrupted(number: int, frame: Any) -> None:
    errors.print("\n[yellow]s2q: interrupted.[/] The same command goes on from the last finished item.")
    raise SystemExit(128 + number)


@app.command()
def plan(
    pipeline: Source,
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = "s2q_vdit",
    set_: Overrides = None,
    steps: StepsOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every linear.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Tell what would be quantized, the size before and after, the memory and the time; loads no weights."""
    from s2q.models.pipelines import default_call, locate
    from s2q.planning import plan as make_plan

    folder = locate(pipeline)
    chosen = chosen_recipe(recipe, bits, set_)
    call = {name: value for name, value in call_of(steps, None, height, width, num_frames).items() if value is not None}
    made = make_plan(folder, chosen, default_call(pipeline, folder) | call, device or "cpu")
    rows = {
        "model": f"{made.model}, {made.parameters / 1e6:.1f} M parameters",
        "recipe": f"{made.recipe} {made.bits}",
        "quantized linears": f"{len(made.targets)}, {made.bits_per_block_weight:.2f} bits a weight",
        "kept in floating point": f"{len(made.kept)} linears, and all norms, embeddings and biases",
        "transformer before": size(made.float_bytes),
        "transformer after": f"{size(made.quantized_bytes)} ({made.float_bytes / made.quantized_bytes:.2f}× smaller)",
        "tokens a sample": f"{made.tokens}",
        "calibration time, about": duration(sum(made.seconds.values())),
        "calibration memory, about": f"{size(made.memory_bytes)}, {size(made.streamed_memory_bytes)} with --stream",
        "work folder, about": f"{size(made.disk_bytes)}, {size(made.streamed_disk_bytes)} with --stream",
    }
    text_rows, text = planned_text(folder)
    table(f"Plan for {pipeline}", rows | text_rows)
    if layers:
        for name, (n, k) in made.targets.items():
            console.print(f"  quantize {name} [{n}, {k}]", markup=False, highlight=False)
        for name, reason in made.kept.items():
            console.print(f"  keep     {name}: {reason}", markup=False, highlight=False)
    write_summary(json_file, made.to_dict() | text)


@app.command()
def quantize(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="The transformer folder to write.")],
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = "s2q_vdit",
    set_: Overrides = None,
    prompts: PromptsOption = None,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    part: PartOption = None,
    stream: StreamOption = None,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep the folder of intermediate results.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Quantize the transformer of a pipeline into a folder that plain diffusers loads after `import s2q`."""
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed)
    opened = open_for(
        pipeline,
        device=device,
        dtype=dtype,
        part=part,
        stream=stream,
        transformer_alone=not chosen.needs_samples,
        **call_of(steps, guidance_scale, height, width, num_frames),
    )
    opened.disposable_text = opened.stream is not None
    done = run_quantize(opened, chosen, out, prompts=given, seed=seed, progress=terminal_progress())
    if not keep_work:
        done.workspace.remove()
    summary = {"recipe": chosen.name, "bits": chosen.bits, "seed": seed, "output": str(out)}
    summary |= {"storage": done.storage.to_dict(), "seconds": done.seconds}
    print_storage(summary["storage"])
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)
    write_summary(json_file, summary)


@app.command()
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
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, transformer, text_encoder, device=device, dtype=dtype, **call)
    started = time.perf_counter()
    with terminal_progress().stage("denoising", opened.steps) as stage:
        clip = make_clip(opened, prompt, seed, lambda latents: stage.advance())
    seconds = time.perf_counter() - started
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, FPS, visible_scale(clip))
    console.print(
        f"{out}: {clip.shape[0]} frames {clip.shape[2]}×{clip.shape[1]}, {seconds:.1f} s", markup=False, highlight=False
    )
    write_summary(
        json_file, {"output": str(out), "prompt": prompt, "seed": seed, "shape": list(clip.shape), "seconds": seconds}
    )


@app.command()
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
    given = comparison_prompts(pipeline, clips, prompts)
    more = measures(clip, dino, aesthetic, aesthetic_clip, vbench, vbench_quantized_only, fps, device)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, None, text_encoder, beside=True, device=device, dtype=dtype, **call)
    out = out or quantized.with_name(quantized.name + ".evaluation")
    more |= {"text_alone": transformer is None}
    write_summary(json_file, evaluate_and_print(opened, quantized, out, given, clips, seed, {}, **more))


@app.command()
def run(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything.")],
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = "s2q_vdit",
    set_: Overrides = None,
    prompts: PromptsOption = None,
    clips: ClipsOption = 16,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    num_frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    stream: StreamOption = None,
    json_file: JsonOption = None,
) -> None:
    """Quantize, evaluate and report in one go: DIR/transformer, DIR/report.html, DIR/report.json.

    --prompts are calibrated on; the comparison uses other prompts, bundled with s2q.
    """
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, device=device, dtype=dtype, stream=stream, **call)
    done = run_quantize(
        opened, chosen, out / "transformer", prompts=given, seed=seed, work=out / "work", progress=terminal_progress()
    )
    print_storage(done.storage.to_dict())
    if not speaks():
        return
    compared = comparison_prompts(pipeline, clips, None)
    report = evaluate_and_print(opened, out / "transformer", out, compared, clips, seed, done.seconds)
    write_summary(json_file, report)
