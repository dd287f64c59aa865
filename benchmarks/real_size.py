"""Time and memory of quantizing a model of a released size, on this machine, with random weights: no figure of quality.

    python benchmarks/real_size.py CogVideoX-2B --recipe s2q_vdit
    python benchmarks/real_size.py T5-XXL --recipe rtn --bits W4A16

A pipeline folder is made in bfloat16 from the published configuration of the transformer; text encoder and VAE are tiny
ones of the right interface, for their cost is not what is measured. `s2q quantize --stream` then runs in a process of
its own, whose peak resident memory is what the operating system says. Calls, samples and epochs are reduced as the
options say: all of them stand in the results. `--config num_layers=2` makes a model of fewer blocks, where all would take
hours: memory does not depend on their number. For T5-XXL it is the other way round: `s2q quantize-text` reads a text
encoder of the size of google/t5-v1_1-xxl, and the transformer is tiny.
"""

import argparse
import json
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
)
from released import COGVIDEOX, MODELS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from s2q.deferred import Deferred
from s2q.shards import PATTERN, TEXT_PATTERN, write_weights
from s2q.storage import write_json

PROMPTS = ["a red square moves left", "a green circle moves right"]
SIZES = ("CogVideoX-2B", "CogVideoX-5B", "HunyuanVideo")
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "T5-XXL": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}
TINY_TRANSFORMER = COGVIDEOX | {"num_attention_heads": 1, "num_layers": 1}


def make_transformer(folder: Path, config: dict[str, Any]) -> None:
    """Write a transformer with random bfloat16 weights."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    (folder / "config.json").write_text(json.dumps({**model.config, "_class_name": config["_class_name"]}))
    write_random(folder, model.state_dict(), PATTERN)


def make_text_encoder(folder: Path, config: dict[str, Any]) -> None:
    """Write a T5 encoder with random bfloat16 weights."""
    shutil.rmtree(folder)
    folder.mkdir()
    settings = T5Config(**config, architectures=["T5EncoderModel"], dtype="bfloat16")
    with torch.device("meta"):
        state = T5EncoderModel(settings).state_dict()
    del state["encoder.embed_tokens.weight"]  # tied to the shared one
    settings.save_pretrained(folder)
    write_random(folder, state, TEXT_PATTERN)


def write_random(folder: Path, tensors: dict[str, torch.Tensor], pattern: str) -> None:
    """Write random bfloat16 weights of the shapes of `tensors`, shard by shard."""
    generator = torch.Generator().manual_seed(0)

    def make(name: str, shape: torch.Size) -> torch.Tensor:
        # Linears keep the size of what passes; norms and biases are as a fresh model has them.
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.02
        offset = 1.0 if "norm" in name and name.endswith("weight") and len(shape) == 1 else 0.0
        return (torch.randn(shape, generator=generator) * scale + offset).to(torch.bfloat16)

    state = {
        name: Deferred(tensor.to(torch.bfloat16), partial(make, name, tensor.shape)) for name, tensor in tensors.items()
    }
    write_weights(state, folder, pattern)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {
        word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *sorted({*" ".join(PROMPTS).split()})])
    }
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def make_pipeline(folder: Path, name: str, changes: dict[str, int]) -> None:
    """Write the pipeline folder of one of `SIZES` or `TEXT_ENCODERS`, its configuration changed, unless it is there."""
    if (folder / "model_index.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    config, tokenizer = MODELS.get(name, TINY_TRANSFORMER) | changes, _tokenizer()
    channels = {"latent_channels": 16, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    if config["_class_name"] == COGVIDEOX["_class_name"]:
        text = T5EncoderModel(T5Config(vocab_size=64, d_model=4096, d_kv=8, d_ff=8, num_layers=1, num_heads=2))
        vae = AutoencoderKLCogVideoX(**channels)
        parts = {"tokenizer": tokenizer, "text_encoder": text, "vae": vae, "scheduler": CogVideoXDDIMScheduler()}
        pipe = CogVideoXPipeline(transformer=None, **parts)
    else:
        sizes = {"vocab_size": 64, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
        text = LlamaModel(LlamaConfig(hidden_size=4096, num_key_value_heads=2, pad_token_id=0, **sizes))
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, **sizes | {"num_hidden_layers": 1}))
        pipe = HunyuanVideoPipeline(
            transformer=None,
            text_encoder=text,
            tokenizer=tokenizer,
            text_encoder_2=clip,
            tokenizer_2=tokenizer,
            vae=AutoencoderKLHunyuanVideo(**channels),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipe.to(torch.bfloat16).save_pretrained(folder)
    make_transformer(folder / "transformer", config)
    if name in TEXT_ENCODERS:
        make_text_encoder(folder / "text_encoder", TEXT_ENCODERS[name])
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))


def main() -> None:
    """Make the pipeline, quantize it in a process of its own, note what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[*SIZES, *TEXT_ENCODERS])
    parser.add_argument("--recipe", default="rtn")
    parser.add_argument("--bits", default="W4A6")
    parser.add_argument("--size", type=int, nargs=3, default=(9, 128, 128), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--config", nargs="+", default=[], metavar="NAME=NUMBER", help="of the transformer, in place of its own"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/real-size"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    name = "-".join([arguments.model, *arguments.config])
    source = arguments.folder / name
    changes = {key: int(value) for key, _, value in (change.partition("=") for change in arguments.config)}
    make_pipeline(source, arguments.model, changes)
    prompts = arguments.folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    out = arguments.folder / f"{name}-{arguments.recipe}"
    for leftover in (out, out.with_name(out.name + ".work")):
        shutil.rmtree(leftover, ignore_errors=True)
    frames, height, width = arguments.size
    is_text = arguments.model in TEXT_ENCODERS
    command = f"s2q {'quantize-text' if is_text else 'quantize'} {source} -o {out} --recipe {arguments.recipe} "
    command += f"--bits {arguments.bits} --prompts {prompts} --device cpu "
    if not is_text:
        command += f"--steps {arguments.steps} --num-frames {frames} --height {height} --width {width} --stream "
        command += "--dtype bfloat16 --set sampler.prompts=2"
    if arguments.recipe != "rtn" and not is_text:
        command += f" --set sampler.count={arguments.samples} --set optim.epochs={arguments.epochs}"
    started = time.perf_counter()
    program = f"import sys, torch; torch.set_num_threads({arguments.threads}); sys.argv[0] = 's2q'; "
    program += "from s2q.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *shlex.split(command)[1:]], check=True)
    seconds = time.perf_counter() - started
    result = {
        "command": "python " + shlex.join(sys.argv),
        "quantize": command.strip(),
        "seconds": seconds,
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "storage": json.loads((out / "s2q_provenance.json").read_text())["storage"],
        "threads": arguments.threads,
        "processor": platform.machine(),
        "torch": torch.__version__,
    }
    write_json(arguments.results / f"real-size-{name}-{arguments.recipe}.json", result)
    print(json.dumps(result, indent=2))
    shutil.rmtree(out)
    shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)


if __name__ == "__main__":
    main()
