"""Prompts encoded first: the same videos, and no text encoder in memory while they are made."""

from collections.abc import Callable

import pytest
import torch
from tiny import PROMPTS, calls_by_step
from tiny_families import FAMILIES

from s2q.calibration.encoding import prompts_encoded
from s2q.models.pipelines import OpenPipeline

Open = Callable[..., OpenPipeline]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_transformer_gets_what_it_would_have_got(name: str, open_family: Open) -> None:
    plain, early = open_family(name), open_family(name)
    expected = [calls_by_step(plain, prompt, 3) for prompt in PROMPTS]
    with prompts_encoded(early, PROMPTS):
        assert not any(part.startswith("text_encoder") for part, it in early.pipe.components.items() if it is not None)
        found = [calls_by_step(early, prompt, 3) for prompt in PROMPTS]
    for (_, one), (_, other) in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_the_way_of_encoding_is_the_pipelines_own_again_afterwards(open_family: Open) -> None:
    opened = open_family("wan")
    with pytest.raises(KeyError), prompts_encoded(opened, PROMPTS):
        raise KeyError("anything")
    assert "encode_prompt" not in vars(opened.pipe)
    assert not opened.pipe.transformer._forward_pre_hooks


def test_a_pipeline_that_has_no_such_step_keeps_its_encoders(open_family: Open) -> None:
    opened = open_family("wan")
    opened.pipe.encode_prompt = None
    with prompts_encoded(opened, PROMPTS):
        assert opened.pipe.text_encoder is not None
