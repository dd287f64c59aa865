"""Prompts are read as written, and nothing is evaluated on what it was calibrated on."""

from pathlib import Path

import pytest
import torch

from s2q.models.fetching import DEMO
from s2q.prompts import CALIBRATION, EVALUATION, calibration_prompts, evaluation_prompts, read_prompts, readback_of
from s2q.recipe import SamplerSpec


def test_only_clips_of_the_demos_own_size_are_read_back() -> None:
    prompt = evaluation_prompts(DEMO, 1)[0]
    assert set(readback_of(DEMO, prompt, torch.zeros(9, 32, 32, 3, dtype=torch.uint8))) >= {"motion", "shape"}
    assert readback_of(DEMO, prompt, torch.zeros(9, 16, 16, 3, dtype=torch.uint8)) == {}


def test_remarks_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("# remark\r\n\r\n  a white gull  \r\n   # another\r\neine Möwe, #1\n".encode())
    assert read_prompts(path) == ["a white gull", "eine Möwe, #1"]


def test_a_byte_order_mark_is_not_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa white gull\n".encode())
    assert read_prompts(path) == ["a white gull"]


@pytest.mark.parametrize("content", [b"", b"\n# only remarks\n", b"\xff\xfe\xfa"])
def test_a_file_without_prompts_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.txt"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["none.txt", "."])
def test_a_file_that_is_none_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read prompts"):
        read_prompts(tmp_path / name)


def test_bundled_prompts_suffice_for_the_recipes_and_never_overlap() -> None:
    assert len(CALIBRATION) >= SamplerSpec().prompts
    assert len({*CALIBRATION, *EVALUATION}) == len(CALIBRATION) + len(EVALUATION)


def test_demo_is_never_evaluated_on_what_it_is_calibrated_on() -> None:
    calibrated, evaluated = calibration_prompts(DEMO, 20, seed=0), evaluation_prompts(DEMO, 16)
    assert len(calibrated) == 20
    assert len(evaluated) == 16
    assert not set(calibrated) & set(evaluated)
    assert calibration_prompts(DEMO, 20, seed=0) == calibrated
