"""`s2q bench` times what it says, tells who computes, and refuses what it cannot time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run_s2q

from s2q import bench
from s2q.runtime import dispatch
from s2q.runtime.native import library


def test_it_prints_a_row_for_each_shape_and_writes_what_it_prints(tmp_path: Path) -> None:
    options = ["--model", "demo", "--tokens", 16, "--tokens", 32, "--repeats", 1, "--threads", 1]
    done = run_s2q(["bench", *options, "--json", tmp_path / "bench.json"], tmp_path / "logs")
    assert done.status == 0, done.err
    made = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["k"], row["n"], row["m"]) for row in made["rows"]] == [
        (*shape, rows) for shape in bench.SHAPES["demo"] for rows in (16, 32)
    ]
    assert made["threads"] == 1
    for row in made["rows"]:
        seconds = row["median_seconds"]
        assert min(seconds.values()) > 0
        assert row["ratios"]["over bfloat16"] == pytest.approx(seconds["bfloat16"] / seconds["quantized bfloat16"])
        assert f"{row['ratios']['over float32']:.2f}×" in done.out
        operations = 2 * row["k"] * row["n"] * row["m"]
        assert row["peak_gops"] == pytest.approx(1e-9 * operations / seconds["peak"])
        alone = seconds["quantized transform bfloat16, input alone"] / seconds["quantized transform bfloat16"]
        assert row["shares_of_input"]["transform"] == pytest.approx(alone)
        assert set(row["shares_of_peak"]) == set(bench.SCHEMES)
        assert row["shares_of_peak"]["groups"] == pytest.approx(seconds["peak"] / seconds["quantized groups bfloat16"])


def test_what_the_environment_chose_is_part_of_the_command(tmp_path: Path) -> None:
    options = ["--model", "demo", "--tokens", "16", "--repeats", "1", "--json", tmp_path / "bench.json"]
    subprocess.run(
        [sys.executable, "-m", "s2q", "bench", *options], env={**os.environ, "S2Q_BACKEND": "torch"}, check=True
    )
    made = json.loads((tmp_path / "bench.json").read_text())
    assert made["command"].startswith("S2Q_BACKEND=torch s2q bench --model demo ")
    assert made["instruction_set"] is None
    assert all(who.startswith("torch ") for row in made["rows"] for who in row["backends"].values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bits", "W4A16"], "W4A16 leaves activations in floating point"),
        (["--model", "Flux"], "unknown model Flux: known are CogVideoX-2B"),
    ],
)
def test_what_cannot_be_timed_is_refused(options: list[str], said: str, tmp_path: Path) -> None:
    done = run_s2q(["bench", *options], tmp_path)
    assert done.status == 2
    assert said in done.err


def test_ops_alone_tells_who_computes_each_shape_and_scheme_and_times_nothing(tmp_path: Path) -> None:
    done = run_s2q(["bench", "--ops", "--model", "demo", "--tokens", 16], tmp_path)
    assert done.status == 0
    lines = done.out.strip().splitlines()
    assert len(lines) == len(bench.SHAPES["demo"]) * len(bench.SCHEMES)
    assert lines[0].startswith("demo 160 → 160, M = 16, plain: ")
    assert "×" not in done.out


def test_who_was_asked_before_and_why_it_declined_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: "not built")
    dispatch._choose.cache_clear()
    try:
        told = bench.backends(64, 64, 16, 4, 6, "cpu")
    finally:
        dispatch._choose.cache_clear()
    assert set(told) == {name or "plain" for name in bench.SCHEMES}
    assert told["plain"].startswith(
        "torch (torch._int_mm); native does not multiply: not built; triton does not multiply: "
    )


@pytest.mark.parametrize("name", bench.SCHEMES)
def test_what_is_timed_computes_numbers(name: str) -> None:
    linear = bench.quantized(64, 32, 4, 6, "cpu", torch.Generator().manual_seed(0), **bench.SCHEMES[name])
    y = linear(torch.randn(5, 64))
    assert y.isfinite().all()
    assert y.std() > 0


@pytest.mark.parametrize("native", [True, False])
def test_the_peak_is_measured_with_and_without_native_code(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(library, "instruction_set", lambda: None)
    operations, run = bench.peak("cpu")
    assert operations > 0
    run()
    assert bench.interleaved({"peak": run}, 1)["peak"] > 0


@pytest.mark.skipif(not library.instruction_sets(), reason="s2q was installed without a C compiler")
def test_a_call_that_is_held_up_is_not_taken_for_a_long_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(rounds: int, threads: int) -> int:
        time.sleep(0.02 if not asked else 2e-4 * rounds)
        asked.append(rounds)
        return rounds

    monkeypatch.setattr(library, "peak", peak)
    operations, _ = bench.peak("cpu")
    assert operations == asked[-1] > 1


def test_every_instruction_set_has_a_peak_and_more_threads_do_more() -> None:
    for name in library.instruction_sets():
        library.use(name)
        assert library.peak(20, 2) == 2 * library.peak(20, 1) == 4 * library.peak(10, 1)
    library.use(None)


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    bench.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * (bench.WARM_UP + 3)
