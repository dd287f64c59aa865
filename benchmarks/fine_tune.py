"""A fine-tune quantized anew, and with what was found for its base: PSNR to its own full precision, and seconds.

    python benchmarks/fine_tune.py --results benchmarks/results/demo-fine-tune.json

The "fine-tune" is the demo with noise on every weight of its blocks, `--noise` times that weight tensor's standard
deviation: the same distance for every layer, and no training that this project could not repeat.
"""

import argparse
import shlex
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from s2q.comparison.clips import make_float_clips, measure_cell
from s2q.models.pipelines import DEMOS, OpenPipeline, load_transformer, locate, open_pipeline
from s2q.progress import terminal_progress
from s2q.prompts import calibration_prompts, evaluation_prompts
from s2q.recipes import get_recipe, override
from s2q.run import quantize
from s2q.storage import write_json

BATCH = 16
DEMO = next(iter(DEMOS))


def make_fine_tune(source: Path, folder: Path, noise: float, opened: OpenPipeline) -> Path:
    """A copy of the pipeline in `source` whose blocks have other weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("transformer"))
    generator = torch.Generator().manual_seed(0)
    for _, block in opened.family.blocks(opened.transformer):
        for parameter in block.parameters():
            if parameter.ndim > 1:
                parameter.data += noise * parameter.std() * torch.randn(parameter.shape, generator=generator)
    opened.transformer.save_pretrained(folder / "transformer")
    return folder


def variants(recipe: str, learned: int, epochs: int) -> dict[str, tuple[str, list[str], bool]]:
    """Name → recipe, changes, whether the base's run is reused."""
    return {
        "rtn": ("rtn", [], False),
        f"{recipe}, learned anew": (recipe, [f"optim.epochs={learned}"], False),
        f"{recipe}, reused": (recipe, ["optim.epochs=0"], True),
        f"{recipe}, reused, {epochs} epochs more": (recipe, [f"optim.epochs={epochs}"], True),
    }


def measure(options: argparse.Namespace, folder: Path) -> list[dict]:
    """One row a noise and variant."""
    progress, rows = terminal_progress(), []
    prompts, held_out = calibration_prompts(DEMO, 10, 0), evaluation_prompts(DEMO, options.clips)
    demo = open_pipeline(DEMO)
    recipe = override(get_recipe(options.recipe, options.bits), [f"optim.epochs={options.learned}"])
    base = quantize(demo, recipe, folder / "base", prompts=prompts, progress=progress)
    for noise in options.noise:
        own = folder / f"noise-{noise:g}"
        if not (own / "pipeline").exists():
            make_fine_tune(locate(DEMO), own / "pipeline", noise, open_pipeline(DEMO))
        opened = open_pipeline(str(own / "pipeline"), **demo.call)
        make_float_clips(opened, held_out, BATCH, own / "float", progress)
        for name, (method, changes, reused) in variants(options.recipe, options.learned, options.epochs).items():
            chosen = override(get_recipe(method, options.bits), changes)
            out = own / name.replace(", ", "-").replace(" ", "-")
            earlier = base.folder if reused else None
            made = quantize(opened, chosen, out, prompts=prompts, reuse=earlier, progress=progress)
            clips = measure_cell(opened, load_transformer(out, torch.float32), held_out, BATCH, own / "float", progress)
            psnr = [clip["psnr_db"] for clip in clips]
            rows.append(
                {
                    "noise": noise,
                    "variant": name,
                    "psnr_db": statistics.mean(psnr),
                    "psnr_db_by_clip": psnr,
                    "seconds": made.seconds,
                    "taken": [] if made.reused is None else made.reused["taken"],
                }
            )
            print(f"noise {noise:g}, {name}: {rows[-1]['psnr_db']:.2f} dB, {sum(made.seconds.values()):.0f} s")
    return rows


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--recipe", default="s2q_vdit")
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument("--learned", type=int, default=15, help="epochs of the base, and of learning anew")
    parser.add_argument("--epochs", type=int, default=3, help="of the variant that learns on")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="keep everything here; the same command then goes on")
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(options, options.folder or Path(temporary))
    command = "python benchmarks/fine_tune.py " + shlex.join(sys.argv[1:])
    settings = {"recipe": options.recipe, "bits": options.bits, "clips": options.clips, "seed": 0}
    write_json(
        options.results,
        {"command": command, "versions": {"torch": torch.__version__}, "threads": torch.get_num_threads()}
        | settings
        | {"rows": rows},
    )


if __name__ == "__main__":
    main()
