from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import safe_open

from s2q import demo
from s2q.demo import scenes
from s2q.demo.check import generate
from s2q.demo.readback import scores

FAMILIES = list(demo.GENERATION)
PARTS = {
    "cogvideox": {
        "": "CogVideoXPipeline",
        "vae": "AutoencoderKLCogVideoX",
        "transformer": "CogVideoXTransformer3DModel",
        "text_encoder": "T5EncoderModel",
        "tokenizer": "T5Tokenizer",
    },
    "wan": {
        "": "WanPipeline",
        "vae": "AutoencoderKLWan",
        "transformer": "WanTransformer3DModel",
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "T5Tokenizer",
    },
    "hunyuanvideo": {
        "": "HunyuanVideoPipeline",
        "vae": "AutoencoderKLHunyuanVideo",
        "transformer": "HunyuanVideoTransformer3DModel",
        "text_encoder": "LlamaModel",
        "text_encoder_2": "CLIPTextModel",
        "tokenizer": "LlamaTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest) -> SimpleNamespace:
    family = request.param
    pipeline = DiffusionPipeline.from_pretrained(demo.pipeline_dir(family))
    pipeline.set_progress_bar_config(disable=True)
    return SimpleNamespace(family=family, pipeline=pipeline, folder=demo.pipeline_dir(family))


def test_folder_is_small_and_whole(loaded: SimpleNamespace) -> None:
    files = [file for file in loaded.folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    assert (loaded.folder / "README.md").is_file()


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_weights_are_stored_in_bfloat16(loaded: SimpleNamespace, part: str) -> None:
    (file,) = (loaded.folder / part).glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_plain_diffusers_knows_every_part(loaded: SimpleNamespace) -> None:
    for part, name in PARTS[loaded.family].items():
        found = getattr(loaded.pipeline, part) if part else loaded.pipeline
        assert type(found) is (getattr(diffusers, name, None) or getattr(transformers, name))
    models = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in models} == {torch.float32}


def test_tokenizers_know_every_word(loaded: SimpleNamespace) -> None:
    captions = [scene.caption for scene in scenes.all_scenes()]
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(loaded.pipeline, name, None)
        if tokenizer is None:
            continue
        length = demo.GENERATION[loaded.family]["max_sequence_length"]
        tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True).input_ids
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert [text.strip() for text in texts] == captions
        lengths = {len(row) for row in tokenizer(captions, add_special_tokens=False).input_ids}
        assert lengths == {8, 9}, "one piece a word"


def test_one_prompt_makes_one_clip_with_plain_arguments(loaded: SimpleNamespace) -> None:
    settings = {**demo.GENERATION[loaded.family], "num_inference_steps": 2}
    frames = loaded.pipeline("a red square moves left on a grey background", output_type="pt", **settings).frames
    assert frames.shape == (1, scenes.FRAMES, 3, scenes.SIZE, scenes.SIZE)


def test_generation_is_reproducible_clip_by_clip(loaded: SimpleNamespace) -> None:
    prompts = scenes.evaluation_prompts(3)
    together = generate(loaded.pipeline, prompts, loaded.family, num_inference_steps=4)
    assert torch.equal(together, generate(loaded.pipeline, prompts, loaded.family, num_inference_steps=4))
    apart = generate(loaded.pipeline, prompts, loaded.family, num_inference_steps=4, batch=2)
    assert (together.int() - apart.int()).abs().max() <= 2


def test_heldout_prompts_are_followed(loaded: SimpleNamespace) -> None:
    count, motion, shape = {"cogvideox": (24, 0.8, 0.4), "wan": (8, 0.8, 0.3), "hunyuanvideo": (8, 0.8, 0.3)}[
        loaded.family
    ]
    prompts = scenes.evaluation_prompts(count)
    found = scores(generate(loaded.pipeline, prompts, loaded.family), prompts)
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.85
    assert found["motion"] >= motion
    assert found["shape"] >= shape


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_folder_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str) -> None:
    installed = tmp_path / "lib" / "site-packages" / "s2q" / "demo" / "__init__.py"
    monkeypatch.setattr(demo, "__file__", str(installed))
    with pytest.raises(FileNotFoundError, match=rf"python -m s2q\.demo\.train --family {family}"):
        demo.pipeline_dir(family)


def test_unknown_demo_is_said_plainly() -> None:
    with pytest.raises(ValueError, match="cogvideox, wan, hunyuanvideo"):
        demo.pipeline_dir("mochi")
