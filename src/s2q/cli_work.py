"""What several commands do: open, prepare, compare."""

import shlex
import sys
from pathlib import Path
from typing import Any

from s2q.cli_attention import attending
from s2q.cli_open import chosen_device
from s2q.messages import console, errors, table


def measures(
    clip: Path | None,
    dino: Path | None,
    aesthetic: Path | None,
    aesthetic_clip: Path | None,
    vbench: str | None,
    quantized_only: bool,
    fps: float | None,
    device: str | None,
) -> dict[str, Any]:
    """The measures beyond the native ones, opened and checked before anything else is loaded."""
    import transformers

    from s2q.evaluation.vbench import find_official

    if quantized_only and not vbench:
        raise ValueError("--vbench-quantized-only was given without --vbench")
    scorers = []
    if clip or dino or aesthetic or aesthetic_clip:
        from s2q.evaluation.learned import load_scorers

        transformers.utils.logging.disable_progress_bar()
        scorers = load_scorers(clip, dino, aesthetic, aesthetic_clip, chosen_device(device))
    official = find_official(vbench) if vbench else None
    return {"scorers": scorers, "official": official, "official_quantized_only": quantized_only, "fps": fps}


def chosen_recipe(name: str | None, bits: str | None, overrides: list[str] | None, earlier=None):
    """The recipe that the options name, or else the `earlier` run's or the default, with its fields changed."""
    from s2q.recipes import override
    from s2q.reuse import recipe_after

    return override(recipe_after(earlier, name, bits), overrides or [])


def write_summary(path: Path | None, data: dict[str, Any]) -> None:
    """Write what was printed as JSON, if asked to."""
    from s2q.storage import write_json

    if path is not None:
        write_json(path, data)


def prompt_with(words: str, image: Path | None, inputs: list[str]):
    """A prompt with the files that --image and --input NAME=FILE name.

    Raises:
        ValueError: a name that no pipeline has, or no file.
    """
    from s2q.media import INPUTS, Prompt

    files: dict[str, list[Path]] = {"image": [image]} if image else {}
    for given in inputs:
        name, _, file = given.partition("=")
        if name not in INPUTS or not file:
            raise ValueError(f"--input {given}: write NAME=FILE, NAME one of {', '.join(INPUTS)}")
        files.setdefault(name, []).append(Path(file))
    return Prompt(words, **files)


def check_for(pipeline: str, prompts: list[str], part: str | None) -> None:
    """Whether the pipeline can be called with each of `prompts`, before its weights are loaded."""
    from s2q.models.folder import pipeline_class
    from s2q.models.inputs import check_prompts
    from s2q.models.pipelines import locate

    check_prompts(pipeline_class(locate(pipeline, part)), prompts)


def prepare(
    pipeline: str,
    recipe_name: str | None,
    bits: str | None,
    set_: list[str] | None,
    prompts: Path | None,
    seed: int,
    part: str | None,
    earlier=None,
):
    """Recipe and prompts, checked before anything is loaded; what is not given is as in the `earlier` run."""
    from s2q.prompts import calibration_prompts, read_prompts

    chosen = chosen_recipe(recipe_name, bits, set_, earlier)
    if prompts is None and earlier is not None:
        given = earlier.provenance["prompts"]
        if not all(isinstance(prompt, str) for prompt in given):
            raise ValueError(
                f"{earlier.checkpoint.folder} was calibrated on prompts with files, of which it notes the content alone: "
                "give the same prompts with --prompts"
            )
    else:
        given = read_prompts(prompts) if prompts else calibration_prompts(pipeline, chosen.sampler.prompts, seed)
    if chosen.needs_samples and len(given) < chosen.sampler.prompts:
        raise ValueError(
            f"the recipe records {chosen.sampler.prompts} prompts, {prompts or 'the bundled list'} has {len(given)}: "
            f"add prompts, or pass --set sampler.prompts={len(given)}"
        )
    if chosen.needs_samples:
        check_for(pipeline, given[: chosen.sampler.prompts], part)
    return chosen, given


def calibration_file(pipeline: str, prompts: Path | None, most: int, part: str | None) -> list[str] | None:
    """The prompts of a file that a comparison calibrates on, or None for the bundled ones; `most` of them are recorded."""
    from s2q.prompts import calibration_prompts, read_prompts

    given = read_prompts(prompts) if prompts else None
    check_for(pipeline, given or calibration_prompts(pipeline, most, 0), part)
    return given


def earlier_of(reuse: Path | None):
    """The run that `--reuse` names."""
    from s2q.reuse import open_earlier

    return None if reuse is None else open_earlier(reuse)


def call_after(earlier, call: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline's calls: those given, and for the rest those of the earlier run."""
    if earlier is None:
        return call
    return {**call, **earlier.provenance["call"], **{key: value for key, value in call.items() if value is not None}}


def print_reused(done) -> None:
    """Print what an earlier run spared this one."""
    from s2q.reuse import account, sentence

    if done.reused is not None:
        console.print(sentence(account(done.reused, done.seconds)), markup=False, highlight=False, soft_wrap=True)


def comparison_prompts(pipeline: str, clips: int, prompts: Path | None, part: str | None = None) -> list[str]:
    """At most `clips` prompts to compare on: from the file, or bundled ones that nothing was calibrated on."""
    from s2q.prompts import evaluation_prompts, read_prompts

    given = read_prompts(prompts)[:clips] if prompts else evaluation_prompts(pipeline, clips)
    check_for(pipeline, given, part)
    return given


def say_if_fewer(prompts: list[str], clips: int) -> None:
    """Say that there are fewer prompts than the clips asked for, when nothing else is wrong any more."""
    if len(prompts) < clips:
        errors.print(f"{clips} clips asked for, but there are {len(prompts)} prompts: comparing those", highlight=False)


def evaluate_and_print(
    opened,
    folder: Path,
    out: Path,
    prompts: list[str],
    asked: int,
    seed: int,
    seconds,
    second: Path | None = None,
    attention: str = "float",
    text_alone: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Compare, write the report into `out`, print the figures.

    Args:
        folder: of the quantized transformer, or of a text encoder if those that are opened beside are compared alone.
        second: folder of a quantized second transformer that works together with the one in `folder`.
        more: as `measures` gives it, or of the run.
    """
    from s2q.assessment import evaluate as run_evaluate
    from s2q.card import judged
    from s2q.models.folder import PARTS, check_replacement
    from s2q.models.pipelines import load_transformer
    from s2q.progress import terminal_progress

    dtype, device = opened.transformer.dtype, opened.transformer.device
    folders = [folder] if second is None else [folder, second]
    quantized = [opened.transformer]
    if not text_alone:
        for each, part in zip(folders, (opened.part, PARTS[1]), strict=False):
            check_replacement(each, opened.folder, part)
        quantized = [load_transformer(each, dtype).to(device) for each in folders]
    say_if_fewer(prompts, asked)
    with attending(attention, *quantized):
        report = run_evaluate(
            opened,
            quantized[0],
            folder,
            out,
            prompts=prompts,
            seed=seed,
            command="s2q " + shlex.join(sys.argv[1:]),
            seconds=seconds,
            second=None if second is None else (quantized[1], second),
            progress=terminal_progress(),
            **more,
        ).report
    fidelity, rows = report["fidelity"], {}
    rows["PSNR to full precision"] = f"{fidelity['psnr_db']:.2f} dB over {fidelity['clips']} clips"
    rows["SSIM"] = f"{fidelity['ssim']:.4f}"
    rows[f"MS-SSIM, scales: {fidelity['ms_ssim_scales']}"] = f"{fidelity['ms_ssim']:.4f}"
    rows["relative error of the latents"] = f"{fidelity['latent_relative_mse']:.5f}"
    for name in ("motion_ratio", "flicker_ratio"):
        if fidelity[name] is not None:
            rows[name.replace("_", " ")] = f"{fidelity[name]:.3f}"
    rows |= dict(judged(report))
    for name, score in (report["readback"] or {}).get("float", {}).items():
        rows[f"read back: {name}"] = f"{100 * score:.1f} % → {100 * report['readback']['quantized'][name]:.1f} %"
    table(f"{report['recipe']} {report['bits']}", rows)
    console.print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return report
