"""The command line: plan, quantize, generate, evaluate, run."""

import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Run video diffusion transformers in few bits without losing the video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

Source = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A diffusers folder, a hub id, or the word [b]demo[/b].")
]
BitsOption = Annotated[str, typer.Option("--bits", help="W2…W8 with A4…A8 or A16 (weight only), for instance W4A6.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="The method; see docs/recipes.md.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the recipe, for instance optim.epochs=5.")
]
PromptsOption = Annotated[Path | None, typer.Option("--prompts", help="A text file, one prompt a line.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Same command, same seed, same bits.", min=0)]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps.", min=1)]
GuidanceOption = Annotated[float | None, typer.Option("--guidance-scale", help="Classifier-free guidance.")]
HeightOption = Annotated[int | None, typer.Option("--height", min=8)]
WidthOption = Annotated[int | None, typer.Option("--width", min=8)]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1)]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: cuda if there is one.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16; default by device.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write what is printed here, as JSON.")]
TransformerOption = Annotated[Path, typer.Option("--transformer", help="A folder that s2q quantize wrote.")]
ClipsOption = Annotated[int, typer.Option("--clips", help="Clips to compare, on prompts not calibrated on.", min=1)]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2, an interruption status 130."""
    from s2q.messages import user_errors

    _quiet_libraries()
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        app(standalone_mode=True)
    except user_errors() as error:
        errors.print(f"[bold red]s2q:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _interrupted(number: int, frame: Any) -> None:
    errors.print("\n[yellow]s2q: interrupted.[/] The same command goes on from the last finished item.")
    raise SystemExit(128 + number)


def _quiet_libraries() -> None:
    """Progress is ours to show; the libraries' own bars and deprecation notes would run through it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _open(source: str, transformer: Path | None = None, **options: Any):
    import diffusers
    import torch
    import transformers

    from s2q.models.pipelines import open_pipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = options.pop("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype_name = options.pop("dtype") or ("float32" if device == "cpu" else "bfloat16")
    dtype = getattr(torch, dtype_name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"unknown dtype {dtype_name!r}: allowed are float32, bfloat16, float16")
    return open_pipeline(source, transformer=transformer, dtype=dtype, device=device, **options)


def _recipe(name: str, bits: str, overrides: list[str] | None):
    from s2q.recipes import get_recipe, override

    return override(get_recipe(name, bits), overrides or [])


def _call(steps, guidance_scale, height, width, num_frames) -> dict[str, Any]:
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }


def _write(path: Path | None, data: dict[str, Any]) -> None:
    from s2q.storage import write_json

    if path is not None:
        write_json(path, data)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.3f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


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
    chosen = _recipe(recipe, bits, set_)
    call = {name: value for name, value in _call(steps, None, height, width, num_frames).items() if value is not None}
    made = make_plan(folder, chosen, default_call(pipeline, folder) | call, device or "cpu")
    rows = {
        "model": f"{made.model}, {made.parameters / 1e6:.1f} M parameters",
        "recipe": f"{made.recipe} {made.bits}",
        "quantized linears": f"{len(made.targets)}, {made.bits_per_block_weight:.2f} bits a weight",
        "kept in floating point": f"{len(made.kept)} linears, and all norms, embeddings and biases",
        "transformer before": _size(made.float_bytes),
        "transformer after": f"{_size(made.quantized_bytes)} ({made.float_bytes / made.quantized_bytes:.2f}× smaller)",
        "tokens a sample": f"{made.tokens}",
        "calibration time, about": _duration(sum(made.seconds.values())),
        "calibration memory, about": _size(made.memory_bytes),
        "work folder, about": _size(made.disk_bytes),
    }
    _table(f"Plan for {pipeline}", rows)
    if layers:
        for name, (n, k) in made.targets.items():
            console.print(f"  quantize {name} [{n}, {k}]", highlight=False)
        for name, reason in made.kept.items():
            console.print(f"  keep     {name}: {reason}", highlight=False)
    _write(json_file, made.to_dict())


def _prepare(pipeline: str, recipe_name: str, bits: str, set_, prompts: Path | None, seed: int):
    """Recipe and prompts, checked before anything is loaded."""
    from s2q.prompts import calibration_prompts, read_prompts

    chosen = _recipe(recipe_name, bits, set_)
    given = read_prompts(prompts) if prompts else calibration_prompts(pipeline, chosen.sampler.prompts, seed)
    if chosen.needs_samples and len(given) < chosen.sampler.prompts:
        raise ValueError(
            f"the recipe records {chosen.sampler.prompts} prompts, {prompts or 'the bundled list'} has {len(given)}: "
            f"add prompts, or pass --set sampler.prompts={len(given)}"
        )
    return chosen, given


def _print_storage(storage: dict[str, Any]) -> None:
    ratio = storage["float_bytes"] / storage["quantized_bytes"]
    console.print(
        f"transformer {_size(storage['float_bytes'])} → {_size(storage['quantized_bytes'])} ({ratio:.2f}× smaller), "
        f"{storage['bits_per_block_weight']:.2f} bits a block weight",
        highlight=False,
    )


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
    keep_work: Annotated[bool, typer.Option("--keep-work", help="Keep the folder of intermediate results.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Quantize the transformer of a pipeline into a folder that plain diffusers loads after `import s2q`."""
    from s2q.progress import terminal_progress
    from s2q.run import quantize as run_quantize

    chosen, given = _prepare(pipeline, recipe, bits, set_, prompts, seed)
    opened = _open(pipeline, device=device, dtype=dtype, **_call(steps, guidance_scale, height, width, num_frames))
    done = run_quantize(opened, chosen, out, prompts=given, seed=seed, progress=terminal_progress())
    if not keep_work:
        done.workspace.remove()
    summary = {"recipe": chosen.name, "bits": chosen.bits, "seed": seed, "output": str(out)}
    summary |= {"storage": done.storage.to_dict(), "seconds": done.seconds}
    _print_storage(summary["storage"])
    console.print(f"written to {out}", highlight=False, soft_wrap=True)
    _write(json_file, summary)


@app.command()
def generate(
    pipeline: Source,
    prompt: Annotated[str, typer.Option("--prompt", help="What the video shows.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="The video file, .mp4.")],
    transformer: Annotated[Path | None, typer.Option("--transformer", help="A folder that s2q quantize wrote.")] = None,
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
    opened = _open(
        pipeline, transformer, device=device, dtype=dtype, **_call(steps, guidance_scale, height, width, num_frames)
    )
    started = time.perf_counter()
    total = opened.call.get("num_inference_steps") or 50
    with terminal_progress().stage("denoising", total) as stage:
        clip = make_clip(opened, prompt, seed, lambda latents: stage.advance())
    seconds = time.perf_counter() - started
    out.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(out, clip, FPS, visible_scale(clip))
    console.print(f"{out}: {clip.shape[0]} frames {clip.shape[2]}×{clip.shape[1]}, {seconds:.1f} s", highlight=False)
    _write(
        json_file, {"output": str(out), "prompt": prompt, "seed": seed, "shape": list(clip.shape), "seconds": seconds}
    )


@app.command()
def evaluate(
    pipeline: Source,
    transformer: TransformerOption,
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
    json_file: JsonOption = None,
) -> None:
    """Compare with the full-precision twin, same prompts and seeds: metrics.json, report.json, report.html, clips."""
    from s2q.prompts import evaluation_prompts, read_prompts

    given = read_prompts(prompts)[:clips] if prompts else evaluation_prompts(pipeline, clips)
    opened = _open(pipeline, device=device, dtype=dtype, **_call(steps, guidance_scale, height, width, num_frames))
    out = out or transformer.with_name(transformer.name + ".evaluation")
    _write(json_file, _evaluate(opened, transformer, out, given, seed, {}))


def _evaluate(opened, folder: Path, out: Path, prompts: list[str], seed: int, seconds) -> dict[str, Any]:
    from s2q.assessment import evaluate as run_evaluate
    from s2q.checkpoint import PROVENANCE_NAME
    from s2q.models.pipelines import load_transformer
    from s2q.progress import terminal_progress
    from s2q.storage import fingerprint, read_json
    from s2q.workspace import Workspace

    quantized = load_transformer(folder, opened.pipe.transformer.dtype).to(opened.pipe.transformer.device)
    provenance = read_json(folder / PROVENANCE_NAME)
    settings = {"quantized": fingerprint(provenance), "call": opened.call}
    Workspace.open(out / "clips", settings)
    report = run_evaluate(
        opened,
        quantized,
        folder,
        out,
        prompts=prompts,
        seed=seed,
        command="s2q " + shlex.join(sys.argv[1:]),
        seconds=seconds,
        progress=terminal_progress(),
    ).report
    fidelity, rows = report["fidelity"], {}
    rows["PSNR to full precision"] = f"{fidelity['psnr_db']:.2f} dB over {fidelity['clips']} clips"
    rows["SSIM"] = f"{fidelity['ssim']:.4f}"
    rows["relative error of the latents"] = f"{fidelity['latent_relative_mse']:.5f}"
    rows["motion ratio"] = f"{fidelity['motion_ratio']:.3f}"
    for name, score in (report["readback"] or {}).get("float", {}).items():
        rows[f"read back: {name}"] = f"{100 * score:.1f} % → {100 * report['readback']['quantized'][name]:.1f} %"
    _table(f"{report['recipe']} {report['bits']}", rows)
    console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    return report


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
    json_file: JsonOption = None,
) -> None:
    """Quantize, evaluate and report in one go: DIR/transformer, DIR/report.html, DIR/report.json."""
    from s2q.progress import terminal_progress
    from s2q.prompts import evaluation_prompts
    from s2q.run import quantize as run_quantize

    chosen, given = _prepare(pipeline, recipe, bits, set_, prompts, seed)
    opened = _open(pipeline, device=device, dtype=dtype, **_call(steps, guidance_scale, height, width, num_frames))
    done = run_quantize(
        opened, chosen, out / "transformer", prompts=given, seed=seed, work=out / "work", progress=terminal_progress()
    )
    _print_storage(done.storage.to_dict())
    compared = evaluation_prompts(pipeline, clips)
    report = _evaluate(opened, out / "transformer", out, compared, seed, done.seconds)
    _write(json_file, report)
