"""The page says what the summary says, and needs nothing else."""

import re

from test_summary import RESULTS, cell

from s2q.comparison.page import page
from s2q.comparison.summary import cell_text, summary


def made() -> dict:
    return {"command": "s2q compare demo <&>", **summary(RESULTS)}


def test_every_number_of_the_table_is_on_the_page() -> None:
    html = page(made(), "Recipes & models")
    for row in made()["rows"]:
        assert cell_text(row, "psnr_db") in html
    assert "Recipes &amp; models" in html
    assert "s2q compare demo &lt;&amp;&gt;" in html


def test_it_loads_nothing_from_elsewhere() -> None:
    html = page(made(), "x")
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    assert "<script" not in html


def test_each_setting_of_bits_has_its_own_part_and_thirds_are_drawn_where_they_are_measured() -> None:
    thirds = {"latent_error_early": 1e-5, "latent_error_middle": 1e-4, "latent_error_late": 1e-3}
    low, high = [20.0 + n for n in range(6)], [30.0 + n for n in range(6)]
    cells = [cell("a", 0, high), cell("b", 0, low), cell("a", 0, low, "W4A4")]
    for one in cells[:2]:
        one["clips"] = [row | thirds for row in one["clips"]]
    html = page({"command": "x", **summary(RESULTS | {"cells": cells})}, "x")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["W4A6", "W4A4"]
    assert html.count("<svg") == 3
