from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel, DiffusionPipeline
from safetensors import safe_open

from s2q import demo
from s2q.demo import scenes
from s2q.demo.check import generate
from s2q.demo.readback import scores
from s2q.demo.text import MAX_TEXT_TOKENS, tokenize


@pytest.fixture(scope="module")
def pipeline() -> CogVideoXPipeline:
    return DiffusionPipeline.from_pretrained(demo.pipeline_dir())


def test_folder_is_small_and_whole() -> None:
    files = [file for file in demo.pipeline_dir().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24 * 2**20
    assert (demo.pipeline_dir() / "README.md").is_file()


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_weights_are_stored_in_bfloat16(part: str) -> None:
    (file,) = (demo.pipeline_dir() / part).glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_plain_diffusers_knows_every_part(pipeline: CogVideoXPipeline) -> None:
    assert type(pipeline) is CogVideoXPipeline
    assert type(pipeline.vae) is AutoencoderKLCogVideoX
    assert type(pipeline.transformer) is CogVideoXTransformer3DModel
    assert {part.dtype for part in (pipeline.vae, pipeline.transformer, pipeline.text_encoder)} == {torch.float32}


def test_tokenizer_knows_every_word(pipeline: CogVideoXPipeline) -> None:
    captions = [scene.caption for scene in scenes.all_scenes()]
    tokens = tokenize(pipeline.tokenizer, captions)
    assert tokens.shape == (len(captions), MAX_TEXT_TOKENS)
    assert (tokens != pipeline.tokenizer.unk_token_id).all()
    assert pipeline.tokenizer.batch_decode(tokens, skip_special_tokens=True) == captions


def test_one_prompt_makes_one_clip(pipeline: CogVideoXPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        "a red square moves left on a grey background",
        max_sequence_length=MAX_TEXT_TOKENS,
        output_type="pt",
        num_inference_steps=2,
    ).frames
    assert frames.shape == (1, scenes.FRAMES, 3, scenes.SIZE, scenes.SIZE)


def test_generation_is_reproducible_clip_by_clip(pipeline: CogVideoXPipeline) -> None:
    prompts = scenes.evaluation_prompts(3)
    together = generate(pipeline, prompts, num_inference_steps=4)
    assert torch.equal(together, generate(pipeline, prompts, num_inference_steps=4))
    apart = generate(pipeline, prompts, num_inference_steps=4, batch=2)
    assert (together.int() - apart.int()).abs().max() <= 2


def test_heldout_prompts_are_followed(pipeline: CogVideoXPipeline) -> None:
    prompts = scenes.evaluation_prompts(24)
    found = scores(generate(pipeline, prompts), prompts)
    assert found["background"] >= 0.95
    assert found["colour"] >= 0.9
    assert found["motion"] >= 0.8
    assert found["shape"] >= 0.4


def test_missing_folder_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"python -m s2q\.demo\.train"):
        demo.pipeline_dir()
