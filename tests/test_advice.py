"""A plan that nobody can carry out says what would help, with figures; one that fits says nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import CALL, cheap

from s2q.advice import CARD_BYTES, TOO_LONG, advise
from s2q.planning import Plan, plan

GIB = 1 << 30


@pytest.fixture(scope="module")
def made(tiny_pipeline: Path) -> Plan:
    made = plan(tiny_pipeline, cheap("s2q_vdit", "W4A6"), CALL, timed=False)
    return replace(made, memory_bytes=40 * GIB, streamed_memory_bytes=10 * GIB, tokens=1000)


def never(call: dict) -> Plan:
    raise AssertionError(call)


def test_what_fits_needs_no_advice(made: Plan) -> None:
    assert advise(replace(made, memory_bytes=20 * GIB), {}, 30 * GIB, "cuda", never) == []


def test_streaming_is_named_where_it_alone_fits(made: Plan) -> None:
    (line,) = advise(made, {}, 100 * GIB, "cuda", never)
    assert line.startswith("Without --stream this is more than a common large card has, 24 GiB; with it")


@pytest.mark.parametrize(
    ("free", "said", "clip"),
    [
        (
            8 * GIB,
            "8.000 GiB that are free on cpu",
            "--num-frames 49 --height 256 --width 448, 5.234 GiB with --stream",
        ),
        (99 * GIB, "a common large card has", "--num-frames 49 --height 480 --width 832, 18.225 GiB with --stream"),
    ],
)
def test_the_largest_smaller_clip_that_fits_is_named(free: int, said: str, clip: str, made: Plan) -> None:
    large = replace(made, streamed_memory_bytes=30 * GIB)

    def again(call: dict) -> Plan:
        pixels = call["num_frames"] * call["height"] * call["width"]
        return replace(large, tokens=pixels // 40_000, streamed_memory_bytes=pixels * 1000)

    (line,) = advise(large, {}, free, "cpu", again)
    assert said in line
    assert line.endswith(clip)
    (line,) = advise(large, {}, free, "cpu", again, trains=True)
    assert line.endswith("--recipe gptq, which trains nothing, takes far less")


def test_models_that_stay_beside_it_count_and_what_leaves_or_is_streamed_does_not(made: Plan) -> None:
    small = replace(made, memory_bytes=11 * GIB)
    leaving = {"text_encoder": 40 * GIB, "transformer_2": 28 * GIB, "transformer": 28 * GIB}
    assert advise(small, leaving | {"vae": GIB}, 99 * GIB, "cuda", never) == []
    (line,) = advise(small, leaving | {"vae": 20 * GIB}, 99 * GIB, "cuda", lambda call: small)
    assert "with vae, more than" in line
    assert "shorter clips do not help" in line


def test_years_are_not_only_told(made: Plan) -> None:
    slow = replace(made, memory_bytes=0, streamed_memory_bytes=0, seconds={"calibration": TOO_LONG + 3600.0})
    (line,) = advise(slow, {}, CARD_BYTES, "cpu", never)
    assert line.startswith("101.0 h on cpu is too long to wait")
    assert "--recipe rtn" in line
