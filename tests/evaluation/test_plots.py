"""Every figure is one well-formed, quiet, repeatable piece of SVG."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_clips import moving_square

from s2q.evaluation import plots

HOSTILE = "<script>alert(1)</script> $x$ \"'&"
FIGURES: dict[str, Callable[[], str]] = {
    "latent_error": lambda: plots.latent_error([[0.1, 0.2, 0.3], [0.1, 0.1, 0.2]]),
    "latent_error_one_step": lambda: plots.latent_error([[0.1]]),
    "psnr_strip": lambda: plots.psnr_strip([30.0, 31.5, 28.0]),
    "psnr_strip_equal": lambda: plots.psnr_strip([100.0]),
    "block_errors": lambda: plots.block_errors(
        [{"name": HOSTILE, "before": 1e-2, "after": 1e-3}, {"name": "b", "before": 0.0, "after": 0.0}]
    ),
    "block_errors_all_zero": lambda: plots.block_errors([{"name": "b", "before": 0.0, "after": 0.0}]),
    "storage_parts": lambda: plots.storage_parts({"block weights": (1e9, 2.5e8), HOSTILE: (0, 0)}),
    "stage_seconds": lambda: plots.stage_seconds({"token_weights": 12.0, HOSTILE: 0.0}),
    "salience_map": lambda: plots.salience_map(np.eye(4, 6).tolist(), [900, 700, 500, 300, 100, 0], [[0, 0], [3, 3]]),
    "salience_map_one_none_chosen": lambda: plots.salience_map([[1.0]], [500], []),
    "salience_map_large": lambda: plots.salience_map(np.random.default_rng(0).random((90, 50)), range(50), [[89, 49]]),
    "token_weights": lambda: plots.token_weights(moving_square(), np.ones((9, 4, 4))),
    "token_weights_one": lambda: plots.token_weights(moving_square()[:1], np.eye(4)[None]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_clean_and_repeatable(name: str) -> None:
    svg = FIGURES[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert len(root.get("aria-label")) > 20
    assert "http" not in svg
    assert "nan" not in svg.lower().replace("nance", "")
    assert "<script" not in svg
    assert "0a0b0" not in svg, "a placeholder colour was left over"
    assert svg == FIGURES[name]()


def test_letters_are_letters_and_names_are_not_mathematics() -> None:
    texts = [element.text for element in ElementTree.fromstring(FIGURES["stage_seconds"]()).iter("text")]
    assert "token weights" in texts
    assert HOSTILE in texts


def test_figures_of_one_page_do_not_share_ids() -> None:
    ids = [element.get("id") for draw in (FIGURES["latent_error"], FIGURES["psnr_strip"], FIGURES["salience_map"])
           for element in ElementTree.fromstring(draw()).iter() if element.get("id")]  # fmt: skip
    assert ids
    assert len(ids) == len(set(ids))


def test_frames_and_weights_must_belong_together() -> None:
    with pytest.raises(ValueError, match="9 frames but weights for 3"):
        plots.token_weights(moving_square(), np.ones((3, 4, 4)))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.50 KiB"), (5 * 2**30, "5.00 GiB"), (2**41, "2.00 TiB")],
)
def test_bytes_in_words(count: float, text: str) -> None:
    assert plots.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (42, "42 s"), (59.7, "1 min 00 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert plots.human_seconds(seconds) == text
