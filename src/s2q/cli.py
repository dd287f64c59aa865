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
from s2q.cli_open import fitting_stream, open_for
from s2q.cli_options import (
    BitsOrEarlierOption,
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
    RecipeOrEarlierOption,
    ReuseOption,
    SeedOption,
    Source,
    StepsOption,
    StreamOption,
    WidthOption,
    call_of,
)
from s2q.cli_plan import plan
from s2q.cli_push import push
from s2q.cli_text import quantize_text
from s2q.cli_videos import evaluate, generate
from s2q.cli_work import (
    call_after,
    comparison_prompts,
    earlier_of,
    evaluate_and_print,
    prepare,
    print_reused,
    write_summary,
)
from s2q.messages import USER_ERRORS, console, errors, print_storage
from s2q.ranks import speaks
from s2q.reproducible import ask_for_the_same_bits

app = typer.Typer(
    help="Run video diffusion transformers in few bits without losing the video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


for command in (plan, quantize_text, compare, bench, export, push, generate, evaluate):
    app.command()(command)


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
def quantize(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="The transformer folder to write.")],
    bits: BitsOrEarlierOption = None,
    recipe: RecipeOrEarlierOption = None,
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
    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, part, earlier)
    call = call_after(earlier, call_of(steps, guidance_scale, height, width, num_frames))
    where = {"device": device, "dtype": dtype, "part": part}
    stream = fitting_stream(pipeline, chosen, out, call, given, stream=stream, force=force, **where)
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
    bits: BitsOrEarlierOption = None,
    recipe: RecipeOrEarlierOption = None,
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
    reuse: ReuseOption = None,
    force: ForceOption = False,
    json_file: JsonOption = None,
) -> None:
    """Quantize, evaluate and report in one go: DIR/transformer, DIR/report.html, DIR/report.json.

    --prompts are calibrated on; the comparison uses others, those of --evaluation-prompts or bundled with s2q.
    """
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    earlier = earlier_of(reuse)
    chosen, given = prepare(pipeline, recipe, bits, set_, prompts, seed, part, earlier)
    compared = comparison_prompts(pipeline, clips, evaluation_prompts, part)
    call = call_after(earlier, call_of(steps, guidance_scale, height, width, num_frames))
    where = {"device": device, "dtype": dtype, "part": part}
    stream = fitting_stream(pipeline, chosen, out, call, given, stream=stream, force=force, **where)
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
    report = evaluate_and_print(
        opened, out / "transformer", out, compared, clips, seed, done.seconds, reused=done.reused
    )
    write_summary(json_file, report)
