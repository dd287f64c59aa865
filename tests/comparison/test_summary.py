"""From clips to means, spread and tests."""

from typing import Any

import pytest
from scipy.stats import wilcoxon

from s2q.comparison.summary import entries, markdown, summary


def cell(variant: str, seed: int, psnr: list[float], bits: str = "W4A6") -> dict[str, Any]:
    clips = [{"prompt": str(n), "psnr_db": value, "sharpness": 5.0, "ssim": None} for n, value in enumerate(psnr)]
    return {
        "variant": variant,
        "bits": bits,
        "seed": seed,
        "clips": clips,
        "seconds": {"calibration": 2.0 + seed},
        "storage": {"quantized_bytes": 2_000_000},
    }


GOOD = [[30.0, 31.0, 32.0, 33.0, 34.0, 35.0], [31.0, 32.0, 33.0, 34.0, 35.0, 37.0]]
POOR = [[20.0, 21.5, 22.0, 23.0, 25.0, 25.0]]
RESULTS = {
    "float": [{"prompt": str(n), "sharpness": 4.0 + n} for n in range(6)],
    "cells": [cell("good", 0, GOOD[0]), cell("poor", 0, POOR[0]), cell("good", 1, GOOD[1])],
}


def test_means_are_over_all_clips_and_the_spread_over_seeds() -> None:
    good, poor = entries(RESULTS["cells"])
    assert (good.variant, good.seeds, poor.seeds) == ("good", 2, 1)
    assert good.mean["psnr_db"] == pytest.approx(sum(map(sum, GOOD)) / 12)
    means = [sum(seed) / 6 for seed in GOOD]
    assert good.std["psnr_db"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert poor.std["psnr_db"] is None
    assert good.seconds == {"calibration": 2.5}
    assert "ssim" not in good.mean, "a measure that a clip lacks is left out"


def test_steps_have_prompts_of_their_own_and_are_left_out_where_a_cell_lacks_them() -> None:
    steps = [{"step_error": 1e-3 * (n + 1)} for n in range(3)]
    measured = [cell("good", seed, GOOD[seed]) | {"steps": steps} for seed in (0, 1)]
    worse = cell("poor", 0, POOR[0]) | {"steps": [{"step_error": 2 * row["step_error"]} for row in steps]}
    good, poor = summary({"float": RESULTS["float"], "cells": [*measured, worse]})["rows"]
    assert good["mean"]["step_error"] == pytest.approx(2e-3)
    assert poor["against_best_rival"]["step_error"]["difference"] == pytest.approx(2e-3)
    assert poor["against_best_rival"]["step_error"]["p"] == pytest.approx(0.25)
    (entry,) = entries([measured[0], cell("good", 1, GOOD[1])])
    assert "step_error" not in entry.mean
    assert "psnr_db" in entry.mean


def test_the_test_pairs_prompts_and_knows_the_best_rival() -> None:
    good, poor = summary(RESULTS)["rows"]
    by_prompt = [(a + b) / 2 for a, b in zip(*GOOD, strict=True)]
    against = good["against_best_rival"]["psnr_db"]
    assert against["variant"] == "poor"
    assert against["p"] == pytest.approx(wilcoxon(by_prompt, POOR[0]).pvalue)
    assert against["difference"] == pytest.approx(-poor["against_best_rival"]["psnr_db"]["difference"])
    assert good["against_full_precision"]["sharpness"]["float"] == 6.5


def test_variants_at_other_bits_are_no_rivals() -> None:
    results = RESULTS | {"cells": [cell("a", 0, POOR[0]), cell("b", 0, POOR[0], "W4A4")]}
    assert all(row["against_best_rival"] == {} for row in summary(results)["rows"])


def test_clips_that_are_all_the_same_are_no_difference() -> None:
    results = RESULTS | {"cells": [cell("a", 0, POOR[0]), cell("b", 0, POOR[0])]}
    assert summary(results)["rows"][0]["against_best_rival"]["psnr_db"]["p"] == 1


def test_the_table_names_the_best() -> None:
    table = markdown(summary(RESULTS))
    good = next(line for line in table.splitlines() if line.startswith("| good"))
    poor = next(line for line in table.splitlines() if line.startswith("| poor"))
    assert "**33.08 ± 0.82**" in good
    assert "**" not in poor
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
