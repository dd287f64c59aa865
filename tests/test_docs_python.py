"""The example of docs/python.md runs as it stands there."""

import re
from pathlib import Path

import pytest
from diffusers import CogVideoXTransformer3DModel

DOCS = Path(__file__).parents[1] / "docs"


def test_the_example_runs_and_what_it_saved_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(example, "docs/python.md", "exec"), names)
    assert len(names["video"]) == 9
    assert "calibration 6 6" in capsys.readouterr().out
    assert CogVideoXTransformer3DModel.from_pretrained("out").is_quantized


def test_every_name_of_the_front_door_stands_in_the_table() -> None:
    import s2q

    table = (DOCS / "python.md").read_text(encoding="utf-8").split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(s2q.__all__) - {"__version__"} <= named
