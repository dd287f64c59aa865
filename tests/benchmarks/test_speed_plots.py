"""The pictures of speed show what the results say."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plots(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    return script("speed_plots")


def test_every_picture_of_the_documents_is_drawn_anew(
    plots: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["speed_plots.py", "--images", str(tmp_path)])
    plots.main()
    committed = {path.name for path in (ROOT / plots.IMAGES).glob("speed-*.png")}
    assert {path.name for path in tmp_path.iterdir()} == committed
    for name in committed:
        with Image.open(tmp_path / name) as made, Image.open(ROOT / plots.IMAGES / name) as kept:
            assert made.size == kept.size


def test_bars_are_the_ratios_of_the_table(plots: ModuleType, script: Callable[[str], ModuleType]) -> None:
    made, six_seconds = plots.read("peers"), script("speed_tables").six_seconds
    bars = plots.libraries(made).axes[0].patches
    table = six_seconds([s for s in made["shapes"] if (s["model"], s["m"]) == plots.BLOCK], plots.PLAIN)
    own = six_seconds([s for s in made["shapes"] if (s["model"], s["m"]) == plots.BLOCK], "s2q W4A8")
    assert any(bar.get_width() == pytest.approx(table / own) for bar in bars)
    assert [bar.get_width() for bar in bars] == sorted(bar.get_width() for bar in bars)


def test_lines_go_through_the_blocks_that_were_measured(plots: ModuleType) -> None:
    rows = [*plots.read("blocks")["rows"], *plots.read("blocks-long")["rows"]]
    whole = plots.blocks(rows, "it").axes[0].lines[1]
    assert list(whole.get_xdata()) == [row["tokens"] for row in rows]
    assert list(whole.get_ydata()) == [row["ratios"][f"{plots.DEFAULT}, over bfloat16"] for row in rows]
