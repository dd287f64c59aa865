"""Learned measures: exact formulas, the two ways of CLIP kept apart, and folders that are no such model.

The models are tiny and random: nothing here says anything about quality.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_clips import moving_square
from PIL import Image
from processes import run_s2q
from safetensors.torch import load_file, save_file
from tiny_judges import FEATURES, make_clip, make_dino, make_head, set_model_type
from transformers import CLIPModel, ViTModel

from s2q.evaluation import learned
from s2q.evaluation.learned import (
    CLIP_MEAN,
    CLIP_STD,
    LEARNED,
    load_scorers,
    mean_consistency,
    mean_neighbour_similarity,
    mean_text_similarity,
)
from s2q.evaluation.weights import load_head
from s2q.run import Quantized

PROMPT = "a red square"


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judges")
    return {
        "clip": make_clip(folder / "clip"),
        "dino": make_dino(folder / "dino"),
        "aesthetic": make_head(folder / "head.pth"),
    }


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_formulas_by_hand() -> None:
    frames = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    text = np.array([0.0, 2.0])
    first, second, third = frames
    tensors = torch.from_numpy(frames)
    assert mean_text_similarity(tensors, torch.from_numpy(text)) == pytest.approx((0 + 0.8 + 0) / 3)
    assert mean_neighbour_similarity(tensors) == pytest.approx((cos(first, second) + cos(second, third)) / 2)
    # The third frame is opposite to the first and away from the second: both cosines are negative and count as 0.
    assert mean_consistency(tensors) == pytest.approx(((0.6 + 0.6) / 2 + 0) / 2)
    assert mean_consistency(7 * tensors) == pytest.approx(mean_consistency(tensors))


def test_every_measure_is_there_and_identical_clips_score_the_same(judges: dict[str, Path]) -> None:
    scorers = load_scorers(**judges)
    clip, still = moving_square(), np.repeat(moving_square()[:1], 4, axis=0)
    scores = {name: value for scorer in scorers for name, value in scorer(clip, PROMPT).items()}
    assert set(scores) == set(LEARNED)
    assert all(type(value) is float for value in scores.values())
    assert scores == {name: value for scorer in scorers for name, value in scorer(clip.copy(), PROMPT).items()}
    of_still = {name: value for scorer in scorers for name, value in scorer(still, PROMPT).items()}
    for name in ("clip_temp", "clip_temp_evalcrafter", "dino_consistency"):
        assert of_still[name] == pytest.approx(1, abs=1e-5)
        assert scores[name] < 1 - 1e-6
    assert [scorer.source["role"] for scorer in scorers] == ["clip", "dino", "aesthetic"]
    assert all(len(scorer.source["sha256"]) == 64 for scorer in scorers)


def test_batches_do_not_change_the_scores(judges: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scorers, clip = load_scorers(**judges), moving_square()
    whole = [scorer(clip, PROMPT) for scorer in scorers]
    monkeypatch.setattr(learned, "BATCH", 2)
    for scorer, before in zip(scorers, whole, strict=True):
        assert scorer(clip, PROMPT) == pytest.approx(before, abs=1e-6)


def test_clip_sees_what_its_own_preprocessing_makes(judges: dict[str, Path]) -> None:
    """Against PIL, written out: bicubic to 16 on the shorter side, centre crop, normalised."""
    clip = moving_square(noise=20)[:, :, :24]  # 32x24
    pixels = []
    for frame in clip:
        image = Image.fromarray(frame).resize((16, 21), Image.Resampling.BICUBIC)
        pixels.append((np.asarray(image)[2:18].astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD)
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    model = CLIPModel.from_pretrained(judges["clip"]).eval()
    (scorer,) = load_scorers(clip=judges["clip"])
    ids = scorer._tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        frames = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
        text = model.get_text_features(input_ids=ids).pooler_output[0].numpy()
    scores = scorer(clip, PROMPT)
    assert scores["clipsim"] == pytest.approx(np.mean([cos(frame, text) for frame in frames]), abs=2e-3)
    temp = np.mean([cos(a, b) for a, b in pairwise(frames)])
    assert scores["clip_temp"] == pytest.approx(temp, abs=2e-3)


def test_evalcrafter_gives_clip_raw_grey_levels_of_the_squeezed_frame(judges: dict[str, Path]) -> None:
    clip = moving_square(noise=20)[:, :16, :16]  # already of the model's size: nothing to scale
    model = CLIPModel.from_pretrained(judges["clip"]).eval()
    (scorer,) = load_scorers(clip=judges["clip"])
    ids = scorer._tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        raw = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
        frames = model.get_image_features(pixel_values=raw).pooler_output.numpy()
        text = model.get_text_features(input_ids=ids).pooler_output[0].numpy()
    scores = scorer(clip, PROMPT)
    assert scores["clipsim_evalcrafter"] == pytest.approx(np.mean([cos(f, text) for f in frames]), abs=1e-5)
    temp = np.mean([cos(a, b) for a, b in pairwise(frames)])
    assert scores["clip_temp_evalcrafter"] == pytest.approx(temp, abs=1e-5)
    assert abs(scores["clipsim_evalcrafter"] - scores["clipsim"]) > 1e-3
    wide = np.repeat(clip, 2, axis=2)  # squeezed, not cropped: the doubled columns average out
    assert scorer(wide, PROMPT)["clipsim_evalcrafter"] == pytest.approx(scores["clipsim_evalcrafter"], abs=1e-4)


def test_dino_reads_the_class_token_of_uncropped_frames(judges: dict[str, Path]) -> None:
    clip = moving_square(noise=20)[:, :16]  # 16x32, twice as wide as the model's square
    model = ViTModel.from_pretrained(judges["dino"], add_pooling_layer=False).eval()
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    with torch.no_grad():
        frames = model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0].numpy()
    pairs = [
        (max(cos(frames[i], frames[i - 1]), 0) + max(cos(frames[i], frames[0]), 0)) / 2 for i in range(1, len(frames))
    ]
    (scorer,) = load_scorers(dino=judges["dino"])
    assert scorer(clip, "")["dino_consistency"] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_the_aesthetic_head_gets_unit_features(judges: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(judges["aesthetic"])
    save_file(state, tmp_path / "head.safetensors")
    clip = moving_square(noise=20)[:, :16, :16]
    model = CLIPModel.from_pretrained(judges["clip"]).eval()
    pixels = (torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / (
        torch.tensor(CLIP_STD).view(3, 1, 1)
    )
    with torch.no_grad():
        frames = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
    units = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    expected = (units @ state["weight"].numpy()[0] + state["bias"].item()).mean() / 10
    for head in (judges["aesthetic"], tmp_path / "head.safetensors"):
        (scorer,) = load_scorers(aesthetic=head, aesthetic_clip=judges["clip"])
        assert scorer(clip, "")["aesthetic_score"] == pytest.approx(expected, abs=1e-6)


def test_evaluate_scores_both_clips_of_each_pair(
    judges: dict[str, Path], tiny_pipeline: Path, quantized: Callable[..., Quantized], tmp_path: Path
) -> None:
    folder, out = quantized("rtn", "W4A6").folder, tmp_path / "out"
    size = ["--steps", "2", "--height", "16", "--width", "16", "--num-frames", "5", "--device", "cpu", "--clips", "2"]
    models = [word for role, path in judges.items() for word in (f"--{role}", path)]
    finished = run_s2q(
        ["evaluate", tiny_pipeline, "--transformer", folder, "-o", out, *size, *models], tmp_path / "logs"
    )
    assert finished.status == 0, finished.err
    report = json.loads((out / "report.json").read_text())
    assert [model["role"] for model in report["learned"]["models"]] == list(judges)
    assert list(report["learned"]["measures"]) == list(LEARNED)
    scorers = load_scorers(**judges)
    for index, clip in enumerate(report["clips"]):
        frames = load_file(out / "clips" / f"clip-{index:04d}.safetensors")
        for side, name in (("float", "reference"), ("quantized", "candidate")):
            scores = {k: v for scorer in scorers for k, v in scorer(frames[name].numpy(), clip["prompt"]).items()}
            assert clip["learned"][side] == pytest.approx(scores, abs=1e-5)
    for name, row in report["learned"]["measures"].items():
        means = [np.mean([clip["learned"][side][name] for clip in report["clips"]]) for side in ("float", "quantized")]
        assert [row["float"], row["quantized"]] == pytest.approx(means)
    assert "CLIPSIM, EvalCrafter&#39;s way" in (out / "report.html").read_text()
    assert json.loads((out / "metrics.json").read_text())["learned"] == report["learned"]


def test_a_prompt_longer_than_clip_reads_is_cut(judges: dict[str, Path]) -> None:
    (scorer,) = load_scorers(clip=judges["clip"])
    long = "a red square " * 50
    assert np.isfinite(scorer(moving_square(), long)["clipsim"])


@pytest.mark.parametrize("role", ["clip", "dino"])
def test_a_folder_that_is_no_such_model_is_refused(role: str, judges: dict[str, Path], tmp_path: Path) -> None:
    other = judges["dino" if role == "clip" else "clip"]
    with pytest.raises(ValueError, match="holds a model of type"):
        load_scorers(**{role: other})
    with pytest.raises(ValueError, match=r"is not a folder on this machine \(nothing is downloaded\)"):
        load_scorers(**{role: tmp_path / "openai" / "clip"})
    with pytest.raises(ValueError, match=r"has no config\.json: give the folder of a"):
        load_scorers(**{role: tmp_path})
    copy = shutil.copytree(judges[role], tmp_path / "copy")
    weights = copy / "model.safetensors"
    state = load_file(weights)
    state.pop(sorted(state)[0])
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors of the model"):
        load_scorers(**{role: copy})
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_scorers(**{role: copy})
    set_model_type(copy, "no-such-model")
    with pytest.raises(ValueError, match="no model that transformers knows"):
        load_scorers(**{role: copy})


def test_a_clip_without_its_tokenizer_is_refused(judges: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(judges["clip"], tmp_path / "copy")
    for file in copy.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_scorers(clip=copy)


def test_a_head_that_is_none_or_fits_no_clip_is_refused(judges: dict[str, Path], tmp_path: Path) -> None:
    make_head(tmp_path / "wide.pth", FEATURES + 1)
    with pytest.raises(ValueError, match=r"takes 13 features, but CLIP at .* gives 12"):
        load_scorers(clip=judges["clip"], aesthetic=tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="also give --aesthetic-clip or --clip"):
        load_scorers(aesthetic=judges["aesthetic"])
    with pytest.raises(ValueError, match="without --aesthetic"):
        load_scorers(aesthetic_clip=judges["clip"])
    torch.save({"layers.0.weight": torch.zeros(1, 12)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save(print, tmp_path / "code.pth")
    for name, said in (
        ("other", "it holds"),
        ("text", "cannot be read"),
        ("code", "cannot be read"),
        ("none", "cannot"),
    ):
        with pytest.raises(ValueError, match=said):
            load_head(tmp_path / f"{name}.pth")


def test_a_single_frame_has_no_neighbours(judges: dict[str, Path]) -> None:
    (scorer,) = load_scorers(dino=judges["dino"])
    with pytest.raises(ValueError, match="at least two frames"):
        scorer(moving_square()[:1], "")
