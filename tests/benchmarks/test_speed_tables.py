"""What the tables of speed work out from the results."""

from collections.abc import Callable
from types import ModuleType


def test_a_blocks_six_linears_are_four_squares_and_the_two_of_its_feed_forward(
    script: Callable[[str], ModuleType],
) -> None:
    rows = [
        {"model": "one", "k": k, "n": n, "m": 8, "ratios": {"over float32": 1.0, "over bfloat16": 1.0},
         "median_seconds": {"float32": whole, "bfloat16": whole / 2, "quantized float32": own, "quantized bfloat16": own}}
        for k, n, whole, own in ((2, 2, 1.0, 0.5), (2, 8, 4.0, 1.0), (8, 2, 4.0, 1.0))
    ]  # fmt: skip
    text = script("speed_tables").linear(
        {"rows": rows, "bits": "W4A8", "threads": 1, "instruction_set": None, "command": "it"}
    )
    *_, last = (line for line in text.splitlines() if line.startswith("|"))
    # 4 · 1 + 4 + 4 seconds against 4 · 0.5 + 1 + 1.
    assert last == "| one | **a block's six** | 8 | **3.00 / 1.50** |"
    slower = [{**row, "median_seconds": row["median_seconds"] | {"quantized float32": 2.0}} for row in rows]
    of_sets = [row | {"instruction_set": name} for name, own in (("A", rows), ("B", slower)) for row in own]
    text = script("speed_tables").sets({"rows": of_sets, "threads": 1, "command": "it"})
    assert [line for line in text.splitlines() if line.startswith("|")][2:] == [
        "| A | one | 8 | 3.00 / 1.50 |",
        "| B | one | 8 | 1.00 / 1.50 |",
    ]
