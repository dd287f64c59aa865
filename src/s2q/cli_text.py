"""The command `s2q quantize-text`, and what other commands say of text encoders."""

from pathlib import Path
from typing import Annotated, Any

import typer

from s2q.cli_open import chosen_device
from s2q.cli_options import DeviceOption, JsonOption, Overrides, PromptsOption, SeedOption, Source
from s2q.cli_work import write_summary
from s2q.messages import console, print_storage, size

BITS = "W4A16"
RECIPE = "gptq"


def quantize_text(
    pipeline: Source,
    out: Annotated[Path, typer.Option("-o", "--output", help="The text encoder folder to write.")],
    part: Annotated[
        str, typer.Option("--part", metavar="text_encoder|text_encoder_2", help="Which one, where there are several.")
    ] = "text_encoder",
    bits: Annotated[str, typer.Option("--bits", help="W2A16…W8A16: weights alone, for instance W8A16.")] = BITS,
    recipe: Annotated[str, typer.Option("--recipe", help="rtn rounds to nearest and needs no prompts.")] = RECIPE,
    set_: Overrides = None,
    prompts: PromptsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Quantize a text encoder of a pipeline into a folder that plain transformers loads after `import s2q`."""
    import diffusers
    import transformers

    from s2q.models.pipelines import default_call, locate
    from s2q.progress import terminal_progress
    from s2q.prompts import calibration_prompts, read_prompts
    from s2q.text_encoders.quantize import PROMPTS, quantize_text_encoder, text_recipe

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    chosen = text_recipe(recipe, bits, set_ or [])
    looks = chosen.linear.sees_inputs
    given = read_prompts(prompts) if prompts else calibration_prompts(pipeline, PROMPTS, seed) if looks else []
    call = default_call(pipeline, locate(pipeline, "transformer"))
    done = quantize_text_encoder(
        pipeline, chosen, out, part=part, prompts=given, device=chosen_device(device), progress=terminal_progress(),
        **call,
    )  # fmt: skip
    summary = {"part": part, "recipe": chosen.name, "bits": chosen.bits, "output": str(out)}
    summary |= {"prompts": len(given) if looks else 0, "storage": done.storage.to_dict()}
    print_storage(summary["storage"], part)
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)
    write_summary(json_file, summary)


def planned_text(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What `s2q plan` says of the text encoders of the pipeline in `folder`: rows for people, and the same as data."""
    from s2q.text_encoders.planning import text_sizes
    from s2q.text_encoders.quantize import text_recipe

    sizes = text_sizes(folder, text_recipe(RECIPE, BITS))
    rows = {
        f"{part}, {BITS}": f"{made.model}: {size(made.float_bytes)} → {size(made.quantized_bytes)} "
        f"({made.float_bytes / made.quantized_bytes:.2f}× smaller) by s2q quantize-text"
        for part, made in sizes.items()
    }
    return rows, {"text_encoders": {part: {"bits": BITS, **made._asdict()} for part, made in sizes.items()}}
