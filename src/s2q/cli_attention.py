"""The option `--attention` of `s2q generate` and `s2q evaluate`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from s2q.messages import errors


def check_attention(kind: str, device: str) -> None:
    """Refuse a value of `--attention` that is unknown, or does nothing on the device."""
    if kind not in ("float", "int8"):
        raise ValueError(f"unknown attention {kind!r}: allowed are float and int8")
    if kind == "int8" and device != "cpu":
        raise ValueError(f"--attention int8 runs on the CPU, not on {device}: add --device cpu, or leave it out")


@contextmanager
def attending(kind: str, *transformers: Any) -> Iterator[None]:
    """Inside, the attention of the transformers is computed as `--attention` says; calls left to torch are told after."""
    from s2q.runtime.attention import int8_attention

    with ExitStack() as stack:
        installed = [stack.enter_context(int8_attention(model)) for model in transformers if kind == "int8"]
        yield
    for reason, calls in sum((each.declined for each in installed), Counter()).items():
        errors.print(f"{calls} calls of attention were not in int8: {reason}", highlight=False)
