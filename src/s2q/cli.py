"""The command line: plan, quantize, quantize-text, generate, evaluate, run, compare, export, push."""

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from s2q.cli_bench import bench
from s2q.cli_compare import compare
from s2q.cli_export import export
from s2q.cli_options import (
    BitsOption,
    ClipsOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    FramesOption,
    GuidanceOption,
    HeightOption,
    JsonOption,
    Overrides,
    PartOption,
    PromptsOption,
    RecipeOption,
    ReuseOption,
    SeedOption,
    Source,
    StepsOption,
    StreamOption,
    WidthOption,
    call_of,
)
from s2q.cli_push import push
from s2q.cli_text import planned_text, quantize_text
from s2q.cli_videos import evaluate, generate
from s2q.cli_work import (
    call_after,
    chosen_recipe,
    comparison_prompts,
    earlier_of,
    evaluate_and_print,
    fitting_stream,
    open_for,
    prepare,
    print_reused,
    write_summary,
)
from s2q.messages import USER_ERRORS, console, duration, errors, print_storage, size, table
from s2q.ranks import speaks
from s2q.recipes import DEFAULT
from s2q.reproducible import ask_for_the_same_bits

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
app.command()(push)
app.command()(generate)
app.command()(evaluate)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2, an interruption status 130."""
    ask_for_the_same_bits()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' notes to developers
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    console.quiet = not speaks()
    try:
        app(standalone_mode=True)
    except USER_ERRORS as error:
        _fail(str(error))
    except Exception as error:
        from s2q.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(
            f"out of memory, with everything in the smallest parts: use --stream, or fewer frames or pixels ({error})"
        )


def _fail(said: str) -> NoReturn:
    errors.print(f"[bold red]s2q:[/] {escape(said)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _interrupted(number: int, frame: Any) -> None:
    errors.print("\n[yellow]s2q: interrupted.[/] The same command goes on from the last finished item.")
    raise SystemExit(128 + number)


@app.command()
def plan(
    pipeline: Source,
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = DEFAULT,
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
    recipe: RecipeOption = DEFAULT,
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
    reuse: ReuseOption = None,
    force: ForceOption = False,
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep the folder of intermediate results.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Quantize the transformer of a pipeline into a folder that plain diffusers loads after `import s2q`."""
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    earlier = earlier_of(reuse)
    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, earlier)
    call = call_after(earlier, call_of(steps, guidance_scale, height, width, num_frames))
    where = {"device": device, "dtype": dtype, "part": part}
    stream = fitting_stream(pipeline, chosen, out, call, stream=stream, force=force, **where)
    opened = open_for(pipeline, stream=stream, transformer_alone=not chosen.needs_samples, **where, **call)
    opened.disposable_text = opened.stream is not None
    done = run_quantize(opened, chosen, out, prompts=given, seed=seed, reuse=earlier, progress=terminal_progress())
    if not keep_work:
        done.workspace.remove()
    summary = {"recipe": chosen.name, "bits": chosen.bits, "seed": seed, "output": str(out)}
    summary |= {"storage": done.storage.to_dict(), "seconds": done.seconds, "reused": done.reused}
    print_storage(summary["storage"])
    print_reused(done)
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)
    write_summary(json_file, summary)


@app.command()
def run(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything.")],
    bits: BitsOption = "W4A6",
    recipe: RecipeOption = DEFAULT,
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
    reuse: ReuseOption = None,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Quantize, evaluate and report in one go: DIR/transformer, DIR/report.html, DIR/report.json.

    --prompts are calibrated on; the comparison uses other prompts, bundled with s2q.
    """
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    earlier = earlier_of(reuse)
    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, earlier)
    call = call_after(earlier, call_of(steps, guidance_scale, height, width, num_frames))
    where = {"device": device, "dtype": dtype}
    stream = fitting_stream(pipeline, chosen, out, call, stream=stream, force=force, **where)
    opened = open_for(pipeline, stream=stream, **where, **call)
    done = run_quantize(
        opened,
        chosen,
        out / "transformer",
        prompts=given,
        seed=seed,
        work=out / "work",
        reuse=earlier,
        progress=terminal_progress(),
    )
    print_storage(done.storage.to_dict())
    print_reused(done)
    if not speaks():
        return
    compared = comparison_prompts(pipeline, clips, None)
    report = evaluate_and_print(
        opened, out / "transformer", out, compared, clips, seed, done.seconds, reused=done.reused
    )
    write_summary(json_file, report)
