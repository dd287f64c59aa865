"""The words that stand for a demo pipeline."""

import pytest

from s2q import demo
from s2q.models.pipelines import DEMOS, PipelineError, default_call, locate
from s2q.prompts import calibration_prompts, evaluation_prompts


@pytest.mark.parametrize("word", DEMOS)
def test_word_stands_for_a_folder_and_all_arguments_of_a_call(word: str) -> None:
    folder = locate(word)
    assert folder == demo.pipeline_dir(DEMOS[word])
    assert default_call(word, folder) == demo.GENERATION[DEMOS[word]]
    assert not set(calibration_prompts(word, 8, seed=0)) & set(evaluation_prompts(word, 8))


def test_a_second_transformer_is_refused_by_the_word() -> None:
    with pytest.raises(PipelineError, match="demo has no transformer_2: it has transformer"):
        locate("demo", "transformer_2")


def test_every_demo_has_a_word() -> None:
    assert set(DEMOS.values()) == set(demo.GENERATION)


def test_demo_that_is_not_installed_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(demo, "__file__", f"{tmp_path}/lib/python/site-packages/s2q/demo/__init__.py")
    with pytest.raises(PipelineError, match="source checkout"):
        locate("demo-wan")
    with pytest.raises(PipelineError, match="demo, demo-wan, demo-hunyuanvideo"):
        locate("demo-mochi")
