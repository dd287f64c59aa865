"""The command line: plan, quantize, generate, evaluate, run, compare, export."""

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
from s2q.cli_generate import generate
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
    Transformer2Option,
    TransformerOption,
    VBenchOption,
    VBenchQuantizedOption,
    WidthOption,
    call_of,
)
from s2q.cli_plan import plan
from s2q.cli_work import (
    comparison_prompts,
    evaluate_and_print,
    measures,
    open_for,
    prepare,
    write_summary,
)
from s2q.messages import USER_ERRORS, console, errors, print_storage
from s2q.ranks import speaks

app = typer.Typer(
    help="Run video diffusion transformers in few bits without losing the video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


for command in (plan, generate, compare, bench, export):
    app.command()(command)


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

    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, part)
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
def evaluate(
    pipeline: Source,
    transformer: TransformerOption = None,
    transformer_2: Transformer2Option = None,
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
    from s2q.models.folder import PARTS

    folder = transformer or transformer_2
    if folder is None:
        raise ValueError(
            "nothing to compare: give --transformer, --transformer-2, or both, each a folder of s2q quantize"
        )
    part = PARTS[0] if transformer else PARTS[1]
    given = comparison_prompts(pipeline, clips, prompts, part)
    more = measures(clip, dino, aesthetic, aesthetic_clip, vbench, vbench_quantized_only, fps, device)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, device=device, dtype=dtype, part=part, **call)
    out = out or folder.with_name(folder.name + ".evaluation")
    second = transformer_2 if transformer else None
    write_summary(json_file, evaluate_and_print(opened, folder, out, given, clips, seed, {}, second, **more))


@app.command()
def run(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything.")],
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = "s2q_vdit",
    set_: Overrides = None,
    prompts: PromptsOption = None,
    evaluation_prompts: Annotated[
        Path | None, typer.Option("--evaluation-prompts", help="A file as --prompts, of others to compare on.")
    ] = None,
    clips: ClipsOption = 16,
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
    json_file: JsonOption = None,
) -> None:
    """Quantize, evaluate and report in one go: DIR/transformer, DIR/report.html, DIR/report.json.

    --prompts are calibrated on; the comparison uses others, those of --evaluation-prompts or bundled with s2q.
    """
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, part)
    compared = comparison_prompts(pipeline, clips, evaluation_prompts, part)
    call = call_of(steps, guidance_scale, height, width, num_frames)
    opened = open_for(pipeline, device=device, dtype=dtype, part=part, stream=stream, **call)
    done = run_quantize(
        opened, chosen, out / "transformer", prompts=given, seed=seed, work=out / "work", progress=terminal_progress()
    )
    print_storage(done.storage.to_dict())
    if not speaks():
        return
    report = evaluate_and_print(opened, out / "transformer", out, compared, clips, seed, done.seconds)
    write_summary(json_file, report)
