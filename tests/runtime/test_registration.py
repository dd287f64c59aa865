"""`import s2q` costs no second, and whatever is imported before or after it, s2q checkpoints can be loaded."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from s2q.runtime import registration


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library `shelf` with mappings in `shelf.quantizers`, and a module `ours` that enters itself into them."""
    (tmp_path / "shelf" / "quantizers").mkdir(parents=True)
    (tmp_path / "shelf" / "__init__.py").write_text("")
    (tmp_path / "shelf" / "quantizers" / "__init__.py").write_text("from .auto import MAPPING\nBASE = object\n")
    (tmp_path / "shelf" / "quantizers" / "auto.py").write_text("MAPPING = {}\n")
    (tmp_path / "ours.py").write_text(
        "from shelf.quantizers import BASE, auto\n"
        "def register(): auto.MAPPING['ours'] = auto.MAPPING.get('ours', 0) + 1\n"
        "register()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(registration, "PLACES", {"shelf.quantizers": "ours"})
    yield
    for name in ("shelf", "shelf.quantizers", "shelf.quantizers.auto", "ours"):
        sys.modules.pop(name, None)


def entered() -> int:
    return import_module("shelf.quantizers.auto").MAPPING.get("ours", 0)


def waiting() -> int:
    return sum(isinstance(finder, registration._Waiting) for finder in sys.meta_path)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("first", ["shelf", "shelf.quantizers", "shelf.quantizers.auto", "ours"])
def test_a_library_that_comes_later_knows_s2q_once(first: str) -> None:
    registration.register_when_imported()
    registration.register_when_imported()
    assert waiting() == 1
    assert "shelf" not in sys.modules
    import_module(first)
    assert entered() == 1
    assert waiting() == 0


@pytest.mark.usefixtures("library")
def test_a_library_that_is_there_knows_s2q_at_once() -> None:
    import_module("shelf.quantizers")
    registration.register_when_imported()
    assert entered() == 1
    assert waiting() == 0


@pytest.mark.usefixtures("library")
def test_one_that_is_looked_for_and_not_imported_is_waited_for_still() -> None:
    registration.register_when_imported()
    assert importlib.util.find_spec("shelf.quantizers") is not None
    assert waiting() == 1
    assert entered() == 1


@pytest.mark.usefixtures("library")
def test_one_that_fails_to_come_fails_as_it_would_without_s2q_and_can_be_tried_again(tmp_path: Path) -> None:
    registration.register_when_imported()
    broken = tmp_path / "shelf" / "quantizers" / "auto.py"
    broken.write_text("import no_such_module\n")
    with pytest.raises(ImportError, match="no_such_module"):
        import_module("shelf.quantizers")
    broken.write_text("MAPPING = {} # mended\n")
    importlib.invalidate_caches()
    assert entered() == 1


@pytest.mark.parametrize("first", ["import s2q", "import s2q; s2q.register()"])
def test_diffusers_and_transformers_know_s2q_after_it_is_imported(first: str) -> None:
    run(
        f"{first}\n"
        "from diffusers.quantizers import auto; from transformers.quantizers import auto as text\n"
        "assert all('s2q' in m.AUTO_QUANTIZER_MAPPING and 's2q' in m.AUTO_QUANTIZATION_CONFIG_MAPPING for m in (auto, text))\n"
        "import sys; assert not [f for f in sys.meta_path if type(f).__module__.startswith('s2q')], 'still waiting'"
    )


def test_importing_s2q_or_its_command_line_loads_no_library_that_takes_seconds() -> None:
    run(
        "import sys, s2q, s2q.cli\n"
        "slow = {'torch', 'diffusers', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
