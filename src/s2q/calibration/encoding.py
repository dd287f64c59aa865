"""Encode every prompt before the first video is made, so that text encoders can leave memory for good."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from s2q.media import read_media
from s2q.models.pipelines import OpenPipeline


class _Stop(Exception):
    """Ends a call of the pipeline whose rest is not needed."""


def call_up_to_transformer(opened: OpenPipeline, prompts: Sequence[str]) -> None:
    """Call the pipeline for each of `prompts`, in order, and end each call at its first use of the transformer."""

    def stop(*args: Any) -> None:
        raise _Stop

    handle = opened.pipe.transformer.register_forward_pre_hook(stop)
    try:
        for prompt in prompts:
            with suppress(_Stop):
                opened.pipe(
                    prompt=prompt,
                    generator=torch.Generator().manual_seed(0),
                    output_type="latent",
                    **read_media(prompt),
                    **opened.call,
                )
    finally:
        handle.remove()


@contextmanager
def prompts_encoded(opened: OpenPipeline, prompts: Sequence[str]) -> Iterator[None]:
    """Inside, the pipeline may be called once for each of `prompts`, in order, and has no text encoder any more.

    What it encodes is what `encode_prompt` returned when the same calls were made up to their first use of the
    transformer. A pipeline without that method keeps its encoders and is left alone.
    """
    pipe = opened.pipe
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        yield
        return
    made: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        made.append(encode(*args, **kwargs))
        return made[-1]

    try:
        pipe.encode_prompt = keep
        call_up_to_transformer(opened, prompts)
        for name, component in pipe.components.items():
            if name.startswith("text_encoder") and component is not None:
                setattr(pipe, name, None)
        again = iter(made)
        pipe.encode_prompt = lambda *args, **kwargs: next(again)
        yield
    finally:
        del pipe.encode_prompt
