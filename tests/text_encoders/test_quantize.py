"""From a pipeline to a folder: the pipeline's own tokens, repeatable bytes, nothing overwritten."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import run_s2q
from safetensors.torch import load_file
from tiny import PROMPTS, folder_bytes
from tiny_encoders import with_encoder
from tiny_families import FAMILIES
from transformers import T5EncoderModel

from s2q.checkpoint import CheckpointError
from s2q.export.source import open_folder
from s2q.hub import prepare_upload
from s2q.models.pipelines import OpenPipeline
from s2q.package import OutputError
from s2q.text_encoders.calibration import record_tokens
from s2q.text_encoders.opening import text_encoder_classes
from s2q.text_encoders.planning import text_sizes
from s2q.text_encoders.quantize import quantize_text_encoder, text_recipe

SHORT = ("--steps", "2", "--device", "cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_are_those_that_the_pipeline_makes(name: str, open_family: Callable[..., OpenPipeline]) -> None:
    opened = open_family(name)
    for part in text_encoder_classes(opened.folder):
        encoder = getattr(opened.pipe, part)
        tokens = record_tokens(opened, encoder, [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
        assert tokens.input_ids.shape == tokens.attention_mask.shape
        rows = {tuple(row.tolist()) for row in tokens.input_ids}
        assert len(rows) == len(tokens.input_ids), "a row twice"
        assert len(rows) in (2, 3), "both prompts, and the negative one where the pipeline has guidance"
        assert not encoder._forward_pre_hooks


@pytest.mark.parametrize("name", FAMILIES)
def test_gptq_of_every_part_of_every_family(name: str, family_pipelines: dict[str, Path], tmp_path: Path) -> None:
    source = family_pipelines[name]
    planned = text_sizes(source, text_recipe("gptq", "W4A16"))
    for part in text_encoder_classes(source):
        call = dict(FAMILIES[name].call)
        made = [
            quantize_text_encoder(
                str(source), text_recipe("gptq", "W4A16"), tmp_path / f"{part}-{n}", part=part, prompts=PROMPTS, **call
            )
            for n in range(2)
        ]
        assert folder_bytes(made[0].folder) == folder_bytes(made[1].folder)
        assert made[0].storage.quantized_bytes == planned[part].quantized_bytes
        assert made[0].storage.float_bytes == planned[part].float_bytes
        told = json.loads((made[0].folder / "s2q_provenance.json").read_text())
        assert (told["part"], told["prompts"]) == (part, list(PROMPTS))


def test_a_bfloat16_encoder_stays_bfloat16_where_it_is_not_packed(tiny_pipeline: Path, tmp_path: Path) -> None:
    source = with_encoder(tiny_pipeline, "t5-gated", tmp_path / "pipeline", torch.bfloat16)
    done = quantize_text_encoder(str(source), text_recipe("rtn", "W4A16"), tmp_path / "out")
    before = load_file(source / "text_encoder" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    kept = set(before) & set(after)
    assert {"shared.weight", "encoder.final_layer_norm.weight"} <= kept
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in kept)
    assert done.storage.float_bytes == sum(tensor.nbytes for tensor in before.values())
    assert done.storage.quantized_bytes == sum(tensor.nbytes for tensor in after.values())


def test_an_output_is_made_once_and_never_overwritten(tiny_pipeline: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", text_recipe("rtn", "W4A16")
    quantize_text_encoder(str(tiny_pipeline), recipe, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    quantize_text_encoder(str(tiny_pipeline), recipe, out)
    with pytest.raises(OutputError, match="another s2q run"):
        quantize_text_encoder(str(tiny_pipeline), text_recipe("rtn", "W8A16"), out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_what_is_packed_already_is_not_packed_again(tiny_pipeline: Path, packed_own: Path, tmp_path: Path) -> None:
    source = with_encoder(tiny_pipeline, "t5", tmp_path / "pipeline")
    T5EncoderModel.from_pretrained(packed_own).save_pretrained(source / "text_encoder")
    with pytest.raises(ValueError, match="quantized already"):
        quantize_text_encoder(str(source), text_recipe("rtn", "W4A16"), tmp_path / "out")


@pytest.mark.parametrize(
    ("recipe", "bits", "changes", "said"),
    [
        ("rtn", "W4A8", [], "weight-only"),
        ("s2q_vdit", "W4A16", [], "rtn, gptq"),
        ("awq", "W4A16", [], "unknown recipe"),
        ("gptq", "W4A16", ["linear.group=3"], "cannot set"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe: str, bits: str, changes: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text_recipe(recipe, bits, changes)


def test_gptq_without_prompts_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give prompts"):
        quantize_text_encoder(str(tiny_pipeline), text_recipe("gptq", "W4A16"), tmp_path / "out")


def test_push_and_export_say_that_they_take_transformers_alone(packed_own: Path) -> None:
    for take in (prepare_upload, open_folder):
        with pytest.raises(CheckpointError, match=r"is a quantized text encoder \(T5EncoderModel\).*hf upload"):
            take(packed_own)


def test_the_command_line_from_end_to_end_on_the_demo(tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> dict:
        finished = run_s2q([*arguments, "--json", tmp_path / "out.json"], tmp_path / "logs")
        assert finished.status == 0, finished.err
        return json.loads((tmp_path / "out.json").read_text())

    text, transformer = tmp_path / "text", tmp_path / "transformer"
    (tmp_path / "prompts.txt").write_text("a red square moves left\na blue circle moves right\n")
    planned = run("plan", "demo")["text_encoders"]["text_encoder"]
    made = run("quantize-text", "demo", "-o", text, "--prompts", tmp_path / "prompts.txt")
    assert made["storage"]["quantized_bytes"] == planned["quantized_bytes"] < 0.2 * planned["float_bytes"]
    assert (made["recipe"], made["bits"], made["prompts"]) == ("gptq", "W4A16", 2)
    assert "T5EncoderModel.from_pretrained" in (text / "README.md").read_text()
    clip = tmp_path / "clip.mp4"
    run("generate", "demo", "--prompt", "a red square", "-o", clip, "--text-encoder", text, *SHORT)
    assert b"ftyp" in clip.read_bytes()[:12]
    run("quantize", "demo", "-o", transformer, "--recipe", "rtn", "--bits", "W8A8", "--device", "cpu")
    errors = {}
    for name, parts in {
        "text": ["--text-encoder", text],
        "transformer": ["--transformer", transformer],
        "both": ["--text-encoder", text, "--transformer", transformer],
    }.items():
        report = run("evaluate", "demo", *parts, "-o", tmp_path / f"{name}-report", "--clips", "2", *SHORT)
        errors[name] = report["fidelity"]["latent_relative_mse"]
        assert report["text_encoders"] == ({} if name == "transformer" else {"text_encoder": "gptq W4A16"})
    assert 0 < errors["text"] != errors["both"] != errors["transformer"] > 0


def test_comparing_nothing_is_a_mistake(tmp_path: Path) -> None:
    finished = run_s2q(["evaluate", "demo", "-o", tmp_path / "out"], tmp_path / "logs")
    assert finished.status == 2
    assert "--text-encoder" in finished.err
