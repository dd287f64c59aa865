from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from s2q.demo import scenes
from s2q.demo.latents import LatentClips, encode_training_clips
from s2q.demo.loop import Plan
from s2q.demo.train import Sizes, Steps, train, train_autoencoder, train_denoiser

TINY = Sizes(
    autoencoder_channels=(8, 8, 8), autoencoder_batch=2, heads=1, layers=1, diffusion_batch=2, clips_per_scene=1
)


def random_latents() -> LatentClips:
    generator = torch.Generator().manual_seed(0)
    return LatentClips(torch.randn(8, 3, 16, 8, 8, generator=generator).half(), torch.arange(8))


def same_bits(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(
        name == other_name and torch.equal(value, other_value) for (name, value), (other_name, other_value) in pairs
    )


def test_interrupted_autoencoder_training_gives_the_same_bits(tmp_path: Path) -> None:
    straight = train_autoencoder(tmp_path / "straight", 4, TINY, "cpu")
    train_autoencoder(tmp_path / "resumed", 4, TINY, "cpu", stop_after=2)
    assert same_bits(straight, train_autoencoder(tmp_path / "resumed", 4, TINY, "cpu"))


def test_interrupted_diffusion_training_gives_the_same_bits(tmp_path: Path) -> None:
    clips = random_latents()
    straight = train_denoiser(tmp_path / "straight", clips, 5, TINY, "cpu")
    for stop_after in (1, 3, None):
        resumed = train_denoiser(tmp_path / "resumed", clips, 5, TINY, "cpu", stop_after)
    assert same_bits(straight, resumed)


def test_training_learns(tmp_path: Path) -> None:
    few, many = (train_denoiser(tmp_path / str(steps), random_latents(), steps, TINY, "cpu") for steps in (1, 30))
    assert not same_bits(few, many)
    assert many["transformer"].proj_out.weight.abs().max() > few["transformer"].proj_out.weight.abs().max()


def test_whole_training_exports_a_pipeline_plain_diffusers_runs(tmp_path: Path) -> None:
    train(tmp_path / "pipeline", tmp_path / "work", Steps(autoencoder=1, diffusion=1, decoder=1), TINY)
    (tmp_path / "pipeline" / "README.md").write_text("the card")
    train(tmp_path / "pipeline", tmp_path / "work", Steps(autoencoder=1, diffusion=1, decoder=1), TINY, export_now=True)
    assert (tmp_path / "pipeline" / "README.md").read_text() == "the card"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pipeline", "work"]
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a red square", max_sequence_length=16, num_inference_steps=2, output_type="pt").frames
    assert frames.shape == (1, scenes.FRAMES, 3, scenes.SIZE, scenes.SIZE)


def test_nothing_to_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to export yet"):
        train(tmp_path / "pipeline", tmp_path / "work", Steps(1, 1, 1), TINY, export_now=True)


def test_training_clips_are_encoded_once(tmp_path: Path) -> None:
    autoencoder = train_autoencoder(tmp_path, 1, TINY, "cpu")
    first = encode_training_clips(autoencoder, 1, tmp_path / "latents.pt")
    again = encode_training_clips(autoencoder, 7, tmp_path / "latents.pt")
    assert first.latents.shape == (len(scenes.training_scenes()), 3, 16, 8, 8)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.scene, torch.arange(len(scenes.training_scenes())))


def test_rate_rises_then_falls_to_zero() -> None:
    plan = Plan("any", steps=100, peak_rate=1.0, warmup=0.1)
    rates = [plan.rate(step) for step in range(100)]
    peak = rates.index(max(rates))
    assert 8 <= peak <= 12
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.01
