"""The rules of the house: who may import whom, everything public is described, no file grows beyond reading."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import s2q

ROOT = Path(s2q.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
LONGEST = 300

# Room → rooms of s2q that it may import. A room is a folder, or a file beside the folders.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "messages": set(),
    "progress": {"ranks"},
    "ranks": set(),
    "memory": set(),
    "storage": set(),
    "deferred": set(),
    "numerics": set(),
    "recipe": {"numerics"},
    "recipes": {"recipe"},
    "checkpoint": {"numerics"},
    "card": {"templating", "checkpoint", "messages", "version"},
    "shards": {"checkpoint", "deferred", "storage"},
    "runtime": {"checkpoint", "numerics", "shards"},
    "media": {"evaluation", "storage"},  # a video is read as it is written
    "models": {"checkpoint", "demo", "media", "memory"},  # the word `demo` in place of a folder
    "calibration": {"media", "models", "numerics", "recipe", "storage", "progress"},
    "quantization": {"memory", "models", "numerics", "recipe", "checkpoint", "runtime"},
    "text_encoders": {
        "calibration",
        "card",
        "checkpoint",
        "deferred",
        "models",
        "numerics",
        "package",
        "progress",
        "quantization",
        "recipe",
        "recipes",
        "runtime",
        "shards",
        "storage",
        "version",
    },
    "evaluation": {"templating"},
    "templating": set(),
    "comparison": {
        "calibration",
        "evaluation",
        "media",
        "memory",
        "models",
        "progress",
        "prompts",
        "recipe",
        "recipes",
        "run",
        "storage",
        "templating",
        "twins",
        "workspace",
    },
    "export": {"checkpoint", "deferred", "runtime", "shards", "storage"},
    "prompts": {"media", "models", "demo"},
    "bench": {"checkpoint", "numerics", "runtime"},
}
# Beside torch and the standard library, what a room may take from outside.
ONLY_TORCH = {"numerics": {"torch"}}
NEVER_IN = {
    "runtime": {"calibration", "quantization", "models", "evaluation", "run", "recipe", "recipes"},
    "calibration": {"quantization", "runtime", "evaluation"},
    "demo": {"run", "calibration", "quantization", "runtime", "cli"},
}


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            if node.module == "s2q":
                yield from (f"s2q.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_imported(path: Path) -> set[str]:
    own = {name.split(".")[1] for name in imports(path) if name.startswith("s2q.")}
    return own - {room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestFile:
    """Each file by itself."""

    def test_imports_only_what_its_room_may(self, path: Path) -> None:
        allowed = MAY_IMPORT.get(room(path))
        if allowed is not None:
            assert rooms_imported(path) <= allowed
        assert not rooms_imported(path) & NEVER_IN.get(room(path), set())
        assert not any(name == "s2q" for name in imports(path)), "import the room, not the front door"

    def test_is_short_enough_to_be_read(self, path: Path) -> None:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{lines} lines"

    def test_describes_everything_public(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), "the module"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_numerics_takes_nothing_but_torch_and_the_standard_library() -> None:
    import sys

    for path in (ROOT / "numerics").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)} - {"s2q"} - sys.stdlib_module_names
        assert outside <= ONLY_TORCH["numerics"], path.name


def test_nobody_but_the_recipes_asks_for_a_methods_name() -> None:
    from s2q.recipes import RECIPES

    for path in FILES:
        if room(path) in ("recipes", "cli", "cli_plan", "demo"):
            continue
        words = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        compared = words & (set(RECIPES) - {"gptq"})  # "gptq" is also a way of rounding
        assert not compared, f"{path.name} knows {compared}"


def test_the_table_names_rooms_that_exist() -> None:
    rooms = {room(path) for path in FILES}
    named = set(MAY_IMPORT) | set(NEVER_IN) | {name for allowed in MAY_IMPORT.values() for name in allowed}
    assert named <= rooms
