"""The study of text encoders: its sums, and that the page says what the results say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import PROMPTS

from s2q.models.pipelines import OpenPipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("text_encoders")


def test_the_page_says_what_the_results_say(study: ModuleType) -> None:
    page = (ROOT / "docs/text-encoders.md").read_text(encoding="utf-8")
    made = json.loads((ROOT / "benchmarks/results/text-encoders.json").read_text(encoding="utf-8"))
    assert made["command"] in page
    assert study.costs_table(made["costs"]) in page
    assert study.grids_table(made["grids"]) in page


def test_embeddings_are_what_the_transformer_gets_without_masked_tokens(
    study: ModuleType, open_family: Callable[..., OpenPipeline]
) -> None:
    opened = open_family("hunyuan_video")
    states, pooled = study.embeddings(opened, PROMPTS[:1])
    call = opened.pipe.encode_prompt(
        PROMPTS[0], **{k: v for k, v in opened.call.items() if k.startswith(("max_", "pr"))}
    )
    assert torch.equal(states, call[0][call[2].bool()])
    assert torch.equal(pooled, call[1])


def test_the_relative_error_of_known_tensors(study: ModuleType) -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])
    assert study.relative_error([one, one], [one, other]) == pytest.approx(0.02)
