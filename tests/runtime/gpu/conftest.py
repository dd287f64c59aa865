"""The kernels on a GPU if there is one, else in Triton's interpreter; every buffer they write into holds garbage first."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

ON_GPU = torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Triton, and say so."""
    if importlib.util.find_spec("triton") is None:
        for item in items:
            if "runtime/gpu" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="triton is not installed: pip install --no-deps triton"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run."""
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True, scope="module")
def _without_overflow_checks() -> None:
    """The interpreter would repeat each integer operation in 64 bits, which takes half of all its time."""
    if not ON_GPU:
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture(autouse=True, scope="module")
def _poisoned() -> Iterator[None]:
    """`torch.empty` gives what a kernel must not leave behind: NaN, or the bytes of 0x5B."""

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 0x5B)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            function = getattr(torch, name)
            patch.setattr(torch, name, lambda *args, function=function, **kwargs: poison(function(*args, **kwargs)))
        yield
