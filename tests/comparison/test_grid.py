"""A comparison end to end on the tiny pipeline: kept, resumed, and the same as the parts by themselves."""

import json
from pathlib import Path

import pytest
import torch
from tiny import PROMPTS, make_inputs

from s2q.comparison import grid as module
from s2q.comparison.cells import Cell
from s2q.comparison.grid import compare
from s2q.evaluation.metrics import psnr_db
from s2q.models.pipelines import OpenPipeline, load_transformer
from s2q.twins import generate
from s2q.workspace import WorkspaceError

CHEAP = ":sampler.prompts=2:sampler.count=2:optim.epochs=1"
CELLS = [Cell("rtn", "W4A6", 0), Cell("gptq" + CHEAP, "W4A6", 0), Cell("s2q_vdit" + CHEAP, "W4A6", 0)]


def run(opened: OpenPipeline, out: Path, cells=CELLS, **more):
    return compare(opened, cells, out, prompts=list(PROMPTS), calibrate_on=list(PROMPTS), batch=2, **more)


def test_every_cell_is_measured_on_every_prompt_and_kept(
    opened: OpenPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run(opened, tmp_path / "out")
    assert [cell["variant"] for cell in results["cells"]] == [cell.variant for cell in CELLS]
    for cell in results["cells"]:
        assert [row["prompt"] for row in cell["clips"]] == list(PROMPTS)
        assert all(0 < row["latent_relative_mse"] < 1 for row in cell["clips"])
        assert len(cell["steps"]) == len(PROMPTS)
        assert all(0 < row["step_error"] < 1 for row in cell["steps"])
    json.dumps(results)
    shared = list((tmp_path / "out" / "calibration").glob("*/trajectories/*"))
    assert len(shared) == len(PROMPTS), "recipes with the same prompts and seed share their trajectories"

    def fail(*arguments, **more):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(module, "quantize", fail)
    monkeypatch.setattr(module, "measure_cell", fail)
    again = run(opened, tmp_path / "out")
    assert again == results


def test_a_cell_is_the_transformer_that_quantize_makes_and_its_clips_are_those_of_the_pipeline(
    opened: OpenPipeline, tmp_path: Path, quantized
) -> None:
    results = run(opened, tmp_path / "out", CELLS[:1])
    model = load_transformer(tmp_path / "out" / "cells" / CELLS[0].key / "transformer", torch.float32).eval()
    alone = load_transformer(quantized("rtn", "W4A6").folder, torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(**make_inputs(), return_dict=False)[0], alone(**make_inputs(), return_dict=False)[0])
    reference = generate(opened, PROMPTS[1], 1)
    opened.pipe.transformer = model
    row = results["cells"][0]["clips"][1]
    assert row["psnr_db"] == pytest.approx(psnr_db(reference, generate(opened, PROMPTS[1], 1)), abs=0.3)


def test_interrupted_between_cells_it_goes_on(opened: OpenPipeline, tmp_path: Path) -> None:
    begun: list[Cell] = []

    def stop(cell: Cell) -> None:
        begun.append(cell)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(opened, tmp_path / "out", on_cell=stop)
    run(opened, tmp_path / "out", CELLS[:2], on_cell=begun.append)
    assert begun == [CELLS[0], CELLS[1], CELLS[1]]


def test_the_full_precision_transformer_is_given_back(opened: OpenPipeline, tmp_path: Path) -> None:
    before = opened.pipe.transformer
    run(opened, tmp_path / "out", CELLS[:1])
    assert opened.pipe.transformer is before


def test_a_folder_of_other_clips_is_refused(opened: OpenPipeline, tmp_path: Path) -> None:
    run(opened, tmp_path / "out", CELLS[:1])
    with pytest.raises(WorkspaceError, match="prompts"):
        compare(opened, CELLS[:1], tmp_path / "out", prompts=[PROMPTS[0]], batch=2)
