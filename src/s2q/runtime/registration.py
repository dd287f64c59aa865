"""When diffusers and transformers learn to load s2q checkpoints: at once if they are there, else as soon as they come.

Importing them takes seconds, in which a command line that is asked for help, or told something wrong, has nothing to do.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# The package of a library that holds its mappings → the module that enters s2q into them when it is imported. Neither
# library loads anything before its package is there.
PLACES = {"diffusers.quantizers": "s2q.runtime.diffusers", "transformers.quantizers": "s2q.runtime.transformers"}


def register() -> None:
    """Import both libraries and teach them to load s2q checkpoints; doing so twice changes nothing."""
    for own in PLACES.values():
        import_module(own).register()


def register_when_imported() -> None:
    """The same for those that are imported already; for the others, when they are."""
    for package, own in PLACES.items():
        if package in sys.modules:
            import_module(own)
        elif not any(isinstance(finder, _Waiting) and finder.package == package for finder in sys.meta_path):
            sys.meta_path.insert(0, _Waiting(package, own))


class _Waiting(MetaPathFinder):
    """Finds one package as it would be found without, and has its loader import another module when it has run."""

    def __init__(self, package: str, own: str):
        self.package, self._own, self._looking = package, own, False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.package or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._then_import(spec.loader.exec_module)
        return spec

    def _then_import(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def run(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module(self._own)  # half done already, if that is who imports the package

        return run
