"""Whatever the shape, there is a tile to run it with, and none that cannot be."""

from types import SimpleNamespace

import pytest

tuning = pytest.importorskip("s2q.runtime.gpu.tuning")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("size", [1, 20, 32, 64, 100, 128, 1920])
@pytest.mark.parametrize("rows", [1, 16, 17, 128, 129, 17776])
def test_some_tiles_fit_and_are_among_those_that_were_made(
    rows: int, size: int, integer: bool, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning.knobs.runtime, "interpret", False)
    made = {}
    monkeypatch.setattr(tuning.triton, "autotune", lambda *args, **kwargs: lambda _: made.update(args=args, **kwargs))
    driver = SimpleNamespace(active=SimpleNamespace(get_current_target=lambda: SimpleNamespace(arch=capability)))
    monkeypatch.setattr(tuning.triton.runtime, "driver", driver)
    tuning.tuned(None)
    prune = made["prune_configs_by"]["early_config_prune"]
    chosen = prune(made["args"][0], {"rows": rows}, SIZE=size, INTEGER=integer)
    assert len(chosen) == len(tuning.tiles_for(rows, size, integer, capability)) > 0
    persistent = integer and rows > 128 and capability == 90
    assert any(config.kwargs["PERSISTENT"] for config in chosen) == persistent
    assert all(config.kwargs["BLOCK_M"] <= max(16, 2 * rows - 1) for config in chosen)
    assert all(32 <= config.kwargs["BLOCK_K"] <= max(32, 2 * size - 1) for config in chosen)
