"""`import s2q`: few names, each what it says, in whatever order they are asked for."""

import subprocess
import sys
from types import ModuleType

import pytest
from diffusers.quantizers import auto
from transformers.quantizers import auto as text_auto

import s2q


def test_the_front_door_has_at_most_twelve_names_and_all_open() -> None:
    assert len(s2q.__all__) <= 12
    for name in s2q.__all__:
        value = getattr(s2q, name)
        assert isinstance(value, str) if name == "__version__" else callable(value), name


def test_names_are_still_functions_when_every_module_is_loaded() -> None:
    program = (
        "import pkgutil, importlib, s2q\n"
        "for m in pkgutil.iter_modules(s2q.__path__): importlib.import_module(f's2q.{m.name}')\n"
        "assert all(callable(getattr(s2q, n)) for n in s2q.__all__ if n != '__version__'), 'hidden by a module'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = s2q.quantise


@pytest.mark.parametrize("mappings", [auto, text_auto], ids=["diffusers", "transformers"])
def test_importing_registers_with_each_library_and_twice_is_harmless(mappings: ModuleType) -> None:
    before = dict(mappings.AUTO_QUANTIZER_MAPPING)
    s2q.register()
    assert before == mappings.AUTO_QUANTIZER_MAPPING
    assert "s2q" in mappings.AUTO_QUANTIZER_MAPPING
    assert "s2q" in mappings.AUTO_QUANTIZATION_CONFIG_MAPPING
