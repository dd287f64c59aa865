"""Memory that runs out: the work goes on in smaller parts, to the same result; other errors are not mistaken for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CALL, PROMPTS, cheap
from torch import Tensor

from s2q.comparison import clips
from s2q.memory import in_chunks, is_out_of_memory
from s2q.models.attention import received_attention
from s2q.models.blocks import replay
from s2q.models.pipelines import OpenPipeline
from s2q.quantization import block, learn
from s2q.run import quantize
from s2q.twins import generate_batch

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@settings(max_examples=30, deadline=None)
@given(total=st.integers(0, 40), size=st.integers(1, 50), most=st.integers(1, 40))
def test_every_item_is_done_once_in_order_and_no_slice_is_larger_than_what_fits(
    error: Exception, total: int, size: int, most: int
) -> None:
    done: list[int] = []

    def work(part: slice) -> None:
        if part.stop - part.start > most:
            raise error
        done.extend(range(part.start, part.stop))

    in_chunks(total, size, work)
    assert done == list(range(total))


def test_one_item_that_is_too_large_and_every_other_error_are_raised() -> None:
    def never(part: slice) -> None:
        raise MemoryError

    def wrong(part: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(MemoryError):
        in_chunks(8, 8, never)
    with pytest.raises(RuntimeError, match="mat1"):
        in_chunks(8, 8, wrong)
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_received_attention_is_the_same_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 50, 8, generator=generator) for _ in range(2))
    mask = torch.rand(2, 1, 50, 50, generator=generator) < 0.8
    whole = received_attention(query, key, mask)
    softmax, widths = Tensor.softmax, []

    def short_of_memory(scores: Tensor, dim: int) -> Tensor:
        widths.append(scores.shape[2])
        if scores.shape[2] > 10:
            raise MemoryError
        return softmax(scores, dim)

    monkeypatch.setattr(Tensor, "softmax", short_of_memory)
    assert torch.allclose(received_attention(query, key, mask), whole, rtol=1e-5, atol=1e-6)
    assert max(widths) == 50
    assert widths[-1] <= 10


def limited(function: Callable, rows_of: Callable[..., int], most: int, hits: list[int]) -> Callable:
    """`function`, which runs out of memory where its arguments have more than `most` rows."""

    def call(*args: Any, **kwargs: Any) -> Any:
        rows = rows_of(*args)
        if rows > most:
            hits.append(rows)
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("change", ["optim.batch_size=2", "objective.temporal=0.5", "objective.guided=1"])
def test_calibration_that_runs_out_of_memory_in_every_step_has_the_same_gradients(
    change: str, opened: OpenPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cheap("s2q_vdit", "W4A6", "optim.epochs=2", change, "optim.batch_size=2")
    whole = quantize(opened, recipe, tmp_path / "whole", prompts=PROMPTS)
    gradients: list[list[Tensor]] = []
    find = learn.Gradients.find

    def kept(self: learn.Gradients, batch: Any, progress: float) -> None:
        """Both ways at the same parameters: Adam would make much of their last bits."""
        both = []
        for short in (False, True):
            with monkeypatch.context() as patch:
                if short:
                    patch.setattr(learn, "replay", tight)
                find(self, batch, progress)
            parameters = [p for transform in self.transforms for p in transform.parameters()]
            both.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        gradients.append(both)

    hits: list[int] = []
    most = 2 if "guided" in change else 1  # pairs stay together
    tight = limited(replay, lambda block, family, states, sides: len(states["hidden_states"]), most, hits)
    monkeypatch.setattr(learn.Gradients, "find", kept)
    accumulate = limited(block.accumulate_hessian, lambda hessian, x: len(x), 7, hits)
    monkeypatch.setattr(block, "accumulate_hessian", accumulate)
    parts = quantize(opened, recipe, tmp_path / "parts", prompts=PROMPTS)
    assert {rows > most for rows in hits} == {True}
    assert gradients
    for whole_gradient, parts_gradient in gradients:
        assert (parts_gradient - whole_gradient).norm() < 1e-3 * whole_gradient.norm()
    errors = [[made.workspace.block_metadata(index)["after"] for index in range(2)] for made in (whole, parts)]
    assert errors[1] == pytest.approx(errors[0], rel=0.3)


def test_clips_of_a_comparison_are_made_fewer_at_a_time(opened: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    hits: list[int] = []
    monkeypatch.setattr(
        clips, "generate_batch", limited(generate_batch, lambda opened, prompts, seeds, step: len(prompts), 1, hits)
    )
    made = clips._make(opened, list(PROMPTS), [0, 1])
    assert hits == [2]
    assert made["clips"].shape[0] == made["latents"].shape[0] == 2
    assert made["latents"].shape[1] == CALL["num_inference_steps"]
    for index, prompt in enumerate(PROMPTS):
        alone = clips._make(opened, [prompt], [index])
        assert torch.equal(alone["clips"][0], made["clips"][index])
