"""What a text encoder is calibrated on: the tokens that the pipeline itself makes of the prompts."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2q.calibration.encoding import call_up_to_transformer
from s2q.models.pipelines import OpenPipeline


class Tokens(NamedTuple):
    """Rows of token ids, each once, padded on the right to one length."""

    input_ids: Tensor
    """int64 [R, L]"""
    attention_mask: Tensor
    """int64 [R, L]; 0 where a token is not to be looked at"""


def record_tokens(opened: OpenPipeline, encoder: nn.Module, prompts: Sequence[str]) -> Tokens:
    """Every different row of tokens that `encoder` receives while the pipeline encodes `prompts`.

    Negative prompts, templates and padding are as the pipeline makes them.

    Raises:
        ValueError: the pipeline never called it with token ids.
    """
    rows: dict[tuple, tuple[Tensor, Tensor]] = {}
    with _calls(encoder) as calls:
        call_up_to_transformer(opened, prompts)
    for arguments in calls:
        ids = arguments.get("input_ids")
        if ids is None:
            continue
        mask = arguments.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
        for row in zip(ids.cpu(), mask.cpu(), strict=True):
            rows.setdefault(tuple(tuple(part.tolist()) for part in row), row)
    if not rows:
        raise ValueError(f"{type(opened.pipe).__name__} gave its {type(encoder).__name__} no token ids")
    longest = max(len(ids) for ids, _ in rows.values())
    padding = encoder.config.pad_token_id or 0
    ids, masks = (
        torch.stack([nn.functional.pad(row[side], (0, longest - len(row[side])), value=value) for row in rows.values()])
        for side, value in ((0, padding), (1, 0))
    )
    return Tokens(ids, masks)


@contextmanager
def _calls(encoder: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """Inside, the arguments of each call of `encoder` are appended to the list."""
    signature, calls = inspect.signature(encoder.forward), []

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(signature.bind_partial(*args, **kwargs).arguments)

    handle = encoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
