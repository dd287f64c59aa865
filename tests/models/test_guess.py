"""A transformer without a row is guessed at, aloud; one that cannot be guessed says what it lacks."""

import logging

import pytest
import torch
from tiny_transformers import ARCHITECTURES, Tiny
from torch import nn

from s2q.models import resolve
from s2q.models.blocks import record_calls, replay
from s2q.models.lookup import guess

GUESSABLE = [
    tiny
    for tiny in ARCHITECTURES
    if tiny.name.startswith(("CogVideoX", "Wan", "LTXV", "Mochi", "Hunyuan", "Allegro", "Cosmos")) and not tiny.restarts
]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.MultiheadAttention(4, 1)


@torch.no_grad()
@pytest.mark.parametrize("tiny", GUESSABLE, ids=lambda tiny: tiny.name)
def test_what_has_a_row_would_have_been_guessed_right(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.make()
    known = resolve(model)
    with caplog.at_level(logging.WARNING):
        made = guess(model)
    assert "Guessed: blocks in transformer_blocks" in caplog.text or "Guessed: blocks in blocks" in caplog.text
    assert (made.block_lists, made.states, made.self_attention) == (
        known.block_lists,
        known.states,
        known.self_attention,
    )
    recorded = record_calls(model, made, tiny.inputs(0))
    assert not recorded.restarts
    replay(made.blocks(model)[0][1], made, recorded.first, recorded.sides[0])


def test_a_model_of_a_user_is_guessed_once_and_then_known(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class MyVideoTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.ModuleList([nn.Linear(2, 2)])
            self.layers = nn.ModuleList([Layer(), Layer()])

    monkeypatch.setattr("s2q.models.family._REGISTRY", {})
    with caplog.at_level(logging.WARNING):
        family = resolve(MyVideoTransformer())
        assert resolve("MyVideoTransformer") is family
    assert family.block_lists == ("layers",)
    assert caplog.text.count("MyVideoTransformer") == 1


def test_a_model_without_blocks_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"Linear is not .* no list of blocks"):
        resolve(nn.Linear(2, 2))


def test_blocks_without_self_attention_are_refused_with_the_names_looked_for() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])

    with pytest.raises(ValueError, match=r"blocks of layers have no self-attention called attn1"):
        resolve(Mixer())


def test_a_name_alone_cannot_be_guessed() -> None:
    with pytest.raises(ValueError, match=r"Known: .*CogVideoXTransformer3DModel"):
        resolve("FluxTransformer2DModel")
