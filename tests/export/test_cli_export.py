"""`s2q export`: mistakes are one line and leave no files; each format is a file that others open."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import CogVideoXTransformer3DModel
from processes import run_s2q
from safetensors import safe_open

from s2q.run import Quantized


@pytest.fixture
def folder(quantized: Callable[..., Quantized]) -> Path:
    return quantized("rtn", "W4A6").folder


def test_every_format_is_written_and_told(folder: Path, tmp_path: Path) -> None:
    outputs = {"dequantized": "plain", "comfyui": "one.safetensors", "compressed-tensors": "packed"}
    for kind, name in outputs.items():
        options = ["--to", kind, "-o", tmp_path / name, "--json", tmp_path / f"{kind}.json"]
        done = run_s2q(["export", folder, *options], tmp_path / "logs")
        assert done.status == 0, done.err
        assert "rtn W4A6" in done.out
        assert json.loads((tmp_path / f"{kind}.json").read_text())["linears"] == 16
    CogVideoXTransformer3DModel.from_pretrained(tmp_path / "plain")
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert "transformer_blocks.0.attn1.to_q.weight" in file.keys()  # noqa: SIM118 - no mapping
    settings = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "compressed-tensors"


MISTAKES = {
    "file without an ending": (["--to", "comfyui"], ".safetensors"),
    "dtype of packed weights": (["--to", "compressed-tensors", "--dtype", "float16"], "packed"),
    "bits of float activations": (["--to", "dequantized", "--act-bits", "8"], "--act-bits"),
    "dtype unknown": (["--to", "dequantized", "--dtype", "int8"], "float32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, folder: Path, tmp_path: Path) -> None:
    options, said = MISTAKES[mistake]
    results = tmp_path / "results"
    results.mkdir()
    done = run_s2q(["export", folder, "-o", results / "out", *options], tmp_path / "logs")
    assert done.status == 2
    assert done.err.startswith("s2q: ")
    assert said in done.err
    assert len(done.err.rstrip("\n").splitlines()) == 1
    assert list(results.iterdir()) == []


@pytest.mark.parametrize("kind", ["dequantized", "compressed-tensors"])
def test_an_output_that_holds_something_is_left_alone(kind: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = run_s2q(["export", folder, "--to", kind, "-o", out], tmp_path / "logs")
    assert done.status == 2
    assert "choose another output" in done.err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_the_source_itself_is_no_output(folder: Path, tmp_path: Path) -> None:
    before = (folder / "config.json").read_bytes()
    assert run_s2q(["export", folder, "--to", "dequantized", "-o", folder], tmp_path / "logs").status == 2
    assert (folder / "config.json").read_bytes() == before


def test_what_cannot_be_said_is_named(quantized: Callable[..., Quantized], tmp_path: Path) -> None:
    options = ["--to", "compressed-tensors", "-o", tmp_path / "out"]
    done = run_s2q(["export", quantized().folder, *options], tmp_path / "logs")
    assert done.status == 2
    assert "kronecker" in done.err
    assert not (tmp_path / "out").exists()
