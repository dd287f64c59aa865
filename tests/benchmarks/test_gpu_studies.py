"""The studies that wait for a GPU run to their end on a CPU, on tiny models, so that none is dead code."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def gpu(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script."""
    return script("gpu")


@pytest.mark.parametrize("command", ["operators", "efficiency", "calibration"])
def test_a_study_runs_and_says_where_it_was_made(command: str, gpu: ModuleType, tmp_path: Path) -> None:
    gpu.main([command, "--device", "cpu", "--tiny", "--repeats", "1", "--results", str(tmp_path)])
    made = json.loads((tmp_path / f"gpu-{command}.json").read_text())
    assert {"command", "device", "versions", "date"} <= made.keys()
    assert made["versions"]["torch"] == torch.__version__
    if command == "operators":
        (row,) = made["rows"]
        assert set(row["speed_over_bfloat16"]) == set(row["share_of_int8_peak"]) == set(gpu.SCHEMES)
        assert all(share > 0 for share in row["share_of_int8_peak"].values())
        assert {"W4A6: input", "W4A6: product"} <= row["median_seconds"].keys()
    if command == "efficiency":
        stored = {(row["model"], row["linears"]): row["storage_gib"] for row in made["rows"]}
        assert len(made["rows"]) == 2 * len(stored) == 2 * 3 * len(gpu.TINY)
        assert all(stored[name, "s2q_plus W4A8"] < stored[name, "bfloat16"] for name in gpu.TINY)
    if command == "calibration":
        assert [row["recipe"] for row in made["rows"]] == ["s2q_vdit W4A6", "s2q_plus W4A8"]
        assert all(row["seconds"] > 0 for row in made["rows"])


@pytest.mark.parametrize("name", ["CogVideoX-2B", "CogVideoX-5B", "HunyuanVideo", "Wan-14B"])
def test_the_published_sizes_hold_the_widths_that_are_timed(name: str, gpu: ModuleType) -> None:
    config, _ = gpu.models(tiny=False)[name]
    model = gpu.empty_model(config | {"num_layers": 1}, gpu.get_recipe("s2q_vdit", "W4A6"))
    linears = [module for module in model.modules() if isinstance(module, gpu.QuantLinear)]
    assert set(gpu.WIDTHS[name]) <= {(linear.in_features, linear.out_features) for linear in linears}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(gpu: ModuleType, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["operators", "--results", str(tmp_path)])
    assert stopped.value.code == gpu.NO_GPU
    assert capsys.readouterr().err == "operators: no GPU here, nothing was measured\n"
    assert not list(tmp_path.iterdir())
