"""The page of results says what the results say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results_page(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    return script("results_page")


PAGES = (Path("docs/results.md"), Path("docs/speed.md"))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_committed_page_is_what_the_committed_results_say(results_page: ModuleType, page: Path) -> None:
    assert page in results_page.PAGES
    text = page.read_text(encoding="utf-8")
    assert results_page.filled(text) == text, "run python benchmarks/results_page.py"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_table_names_the_command_that_made_it(results_page: ModuleType, page: Path) -> None:
    places = list(results_page.PLACE.finditer(page.read_text(encoding="utf-8")))
    assert len(places) >= 3
    for place in places:
        made = json.loads((results_page.RESULTS / f"{place['file']}.json").read_text())
        assert made["command"] in place[0]


def test_a_changed_figure_is_noticed(results_page: ModuleType) -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    place = next(results_page.PLACE.finditer(text))
    forged = text.replace(place[0], place[0].replace("| 3 |", "| 4 |"))
    assert forged != text
    assert results_page.filled(forged) == text
