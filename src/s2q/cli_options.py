"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from s2q.recipes import DEFAULT, DEFAULT_BITS

_DEMOS = "the word [b]demo[/b] (from a source checkout also [b]demo-wan[/b] and [b]demo-hunyuanvideo[/b])"

Source = Annotated[str, typer.Argument(metavar="PIPELINE", help=f"A diffusers folder, a hub id, or {_DEMOS}.")]
_EARLIER = "or that of the run that is reused"
BitsOption = Annotated[
    str, typer.Option("--bits", help="W2…W8 with A4…A8 or A16 (weight only), for instance W4A6 or W4A4.")
]
BitsOrEarlierOption = Annotated[
    str | None,
    typer.Option("--bits", help=f"As W4A6, W4A4; W4A16 is weight only. Default: {DEFAULT_BITS}, {_EARLIER}."),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="The method; see docs/recipes.md.")]
RecipeOrEarlierOption = Annotated[
    str | None, typer.Option("--recipe", help=f"The method; see docs/recipes.md. Default: {DEFAULT}, {_EARLIER}.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the recipe, for instance optim.epochs=5.")
]
PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", help="One prompt a line; with images: docs/architectures.md.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Same command, same seed, same bits.", min=0)]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Denoising steps.", min=1)]
GuidanceOption = Annotated[float | None, typer.Option("--guidance-scale", help="Classifier-free guidance.")]
HeightOption = Annotated[int | None, typer.Option("--height", min=8)]
WidthOption = Annotated[int | None, typer.Option("--width", min=8)]
FramesOption = Annotated[int | None, typer.Option("--num-frames", min=1)]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: cuda if there is one.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16; default by device.")]
StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Keep the transformer's blocks on disk, one in memory at a time; same bits. Default: if memory is short.",
    ),
]
AttentionOption = Annotated[
    str, typer.Option("--attention", metavar="float|int8", help="int8 saves time on CPUs; see docs/runtime.md.")
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="transformer|transformer_2", help="Which one, where a pipeline has two (Wan 2.2 A14B)."
    ),
]
ReuseOption = Annotated[
    Path | None,
    typer.Option(
        "--reuse",
        metavar="OUT",
        help="An earlier result for the same architecture, such as a fine-tune's base: take over its samples, transforms "
        "and clips, and round alone; --set optim.epochs=N learns on from there.",
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Start although calibration would not fit in memory or on disk, by s2q plan.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write what is printed here, as JSON.")]
ClipModelOption = Annotated[
    Path | None, typer.Option("--clip", help="A CLIP folder, for CLIPSIM and CLIP-Temp; see docs/measures.md.")
]
DinoOption = Annotated[Path | None, typer.Option("--dino", help="A DINO ViT folder, for subject consistency.")]
AestheticOption = Annotated[Path | None, typer.Option("--aesthetic", help="A linear head over CLIP features, a file.")]
AestheticClipOption = Annotated[
    Path | None, typer.Option("--aesthetic-clip", help="The CLIP folder of that head, where it is not --clip.")
]
VBenchOption = Annotated[
    str | None,
    typer.Option(
        "--vbench", metavar="PYTHON", help="The Python of an environment with the official VBench; 251 videos."
    ),
]
VBenchQuantizedOption = Annotated[
    bool, typer.Option("--vbench-quantized-only", help="Make no VBench videos in full precision.")
]
FpsOption = Annotated[
    float | None, typer.Option("--fps", help="Frames per second of the videos. Default: the pipeline's.", min=0.1)
]
TransformerOption = Annotated[Path | None, typer.Option("--transformer", help="A folder that s2q quantize wrote.")]
TextEncodersOption = Annotated[
    list[Path] | None,
    typer.Option("--text-encoder", help="A folder that s2q quantize-text wrote; once for each text encoder."),
]
Transformer2Option = Annotated[
    Path | None, typer.Option("--transformer-2", help="One of the pipeline's second transformer (Wan 2.2 A14B).")
]
ClipsOption = Annotated[int, typer.Option("--clips", help="Clips to compare, on prompts not calibrated on.", min=1)]


def call_of(steps, guidance_scale, height, width, num_frames) -> dict[str, Any]:
    """Arguments of the pipeline's calls, by diffusers' names; None is left to the pipeline."""
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
