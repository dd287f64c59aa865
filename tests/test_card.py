"""The model card says what stands in the folder, can be read by the hub, and tells nothing of the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from s2q.card import CARD_NAME, model_card
from s2q.checkpoint import QuantizationSpec, SchemeSpec
from s2q.run import Quantized

STORAGE = {"float_bytes": 4096, "quantized_bytes": 1024, "parts": {"block weights": (3072, 512), "other": (1024, 512)}}


def made(source: str = "someone/Video-1B", **scheme) -> str:
    schemes = (SchemeSpec(**({"weight_bits": 4, "act_bits": 6, "targets": {"a": "0", "b": "0"}} | scheme)),)
    spec = QuantizationSpec(recipe="rtn", bits="W4A6", producer="s2q", schemes=schemes)
    return model_card(source, "WanTransformer3DModel", "WanPipeline", spec, STORAGE)


def head(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_where_it_comes_from() -> None:
    data = ModelCard(made()).data
    assert data.base_model == "someone/Video-1B"
    assert head(made())["base_model_relation"] == "quantized"
    assert data.library_name == "diffusers"
    assert "W4A6" in data.tags


@pytest.mark.parametrize("source", ["/home/me/secret/Video-1B", "../Video-1B", "./x/Video-1B", "demo", "a/b/Video"])
def test_a_folder_is_no_base_model_and_its_place_is_not_told(source: str) -> None:
    card = made(source)
    assert "base_model" not in head(card)
    assert "secret" not in card
    assert ".." not in card


def test_a_name_that_would_break_out_of_the_card_is_tamed() -> None:
    card = made("x`\n---\nlicense: mit\n[click](http://evil)")
    assert "license" not in head(card)
    assert "](http" not in card


def test_sizes_and_schemes_are_those_of_the_folder() -> None:
    card = made(low_rank=16, kronecker=True, symmetric_acts=False)
    assert "4.00 KiB" in card
    assert "4.00× smaller" in card
    assert "| 2 | 4 bits, symmetric" in card
    assert "a branch of rank 16" in card
    assert "6 bits, with zero points" in card
    assert "Kronecker" in card


def test_weight_only_promises_no_integer_arithmetic() -> None:
    assert "_int_mm" in made()
    assert "_int_mm" not in made(act_bits=None)
    assert "saves memory, not time" in made(act_bits=None)


def test_quantizing_writes_it_and_its_snippet_is_python(quantized: Callable[..., Quantized]) -> None:
    card = (quantized().folder / CARD_NAME).read_text()
    assert "import s2q" in card
    assert "CogVideoXPipeline.from_pretrained" in card
    assert str(Path.home()) not in card
    assert "/tmp" not in card
    compile(card.split("```python")[1].split("```")[0], "card", "exec")
