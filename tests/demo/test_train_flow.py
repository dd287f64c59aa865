import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, DiffusionPipeline
from torch import nn

from s2q.demo import GENERATION, pipeline_dir, scenes
from s2q.demo.autoencoder import to_model
from s2q.demo.distillation import Pairs
from s2q.demo.flow import FlowFamily, guidance_loss
from s2q.demo.latents import LatentClips, encode_training_clips
from s2q.demo.train import FLOW_FAMILIES
from s2q.demo.train_flow import (
    FlowSizes,
    FlowSteps,
    plan_flow_steps,
    teach_autoencoder,
    teach_guidance,
    train_flow,
    train_flow_denoiser,
)

TINY = {
    "wan": FlowSizes(None, {"heads": 1, "layers": 1}, {"base_dim": 4}, 2, 1, 1, 1),
    "hunyuanvideo": FlowSizes(
        None, {"heads": 1, "dual": 1, "single": 1}, {"block_out_channels": (8, 8, 8)}, 2, 1, 1, 1
    ),
}
CLIPS = LatentClips(torch.randn(8, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half(), torch.arange(8))


@pytest.fixture(params=list(FLOW_FAMILIES))
def family(request: pytest.FixtureRequest) -> FlowFamily:
    return FLOW_FAMILIES[request.param]


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    few = scenes.training_scenes()[:8]
    monkeypatch.setattr(scenes, "training_scenes", lambda: few)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_diffusion_training_gives_the_same_bits(family: FlowFamily, tmp_path: Path) -> None:
    sizes = TINY[family.name]
    straight = train_flow_denoiser(family, tmp_path / "straight", CLIPS, 4, sizes)
    for stop_after in (1, 3, None):
        resumed = train_flow_denoiser(family, tmp_path / "resumed", CLIPS, 4, sizes, stop_after=stop_after)
    assert same_bits(straight, resumed)
    fewer = train_flow_denoiser(family, tmp_path / "fewer", CLIPS, 1, sizes)
    assert not same_bits(straight, fewer)


def test_one_call_learns_what_two_make_together(tmp_path: Path) -> None:
    family, sizes = FLOW_FAMILIES["hunyuanvideo"], TINY["hunyuanvideo"]
    teacher = train_flow_denoiser(family, tmp_path, CLIPS, 20, sizes)
    loss = guidance_loss(family, straight := copy.deepcopy(teacher), teacher, CLIPS, batch=8)
    before = loss(torch.Generator().manual_seed(0)).item()
    assert before > 0
    teach_guidance(family, tmp_path / "straight", straight, CLIPS, 12, sizes)
    assert loss(torch.Generator().manual_seed(0)).item() < before
    for stop_after in (5, None):
        teach_guidance(family, tmp_path / "resumed", resumed := copy.deepcopy(teacher), CLIPS, 12, sizes, stop_after)
    assert same_bits(straight, resumed)


def test_interrupted_teaching_gives_the_same_bits(family: FlowFamily, tmp_path: Path) -> None:
    steps, sizes = FlowSteps(diffusion=1, guidance=0, decoder=2, encoder=2), TINY[family.name]
    straight = teach_autoencoder(family, tmp_path / "straight", CLIPS, steps, sizes)
    teach_autoencoder(family, tmp_path / "resumed", CLIPS, steps, sizes, stop_after=1)
    assert same_bits(straight, teach_autoencoder(family, tmp_path / "resumed", CLIPS, steps, sizes))


def test_whole_training_exports_a_pipeline_plain_diffusers_runs(
    family: FlowFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2q.demo.train_flow.training_latents", lambda sizes, work: CLIPS)
    output, steps, sizes = tmp_path / "pipeline", FlowSteps(1, 1, 1, 1), TINY[family.name]
    train_flow(family, output, tmp_path / "work", steps, sizes)
    (output / "README.md").write_text("the card")
    train_flow(family, output, tmp_path / "work", steps, sizes, export_now=True)
    assert (output / "README.md").read_text() == "the card"
    pipeline = DiffusionPipeline.from_pretrained(output)
    pipeline.set_progress_bar_config(disable=True)
    settings = {**GENERATION[family.name], "num_inference_steps": 2}
    frames = pipeline("a red square", output_type="pt", **settings).frames
    assert frames.shape == (1, scenes.FRAMES, 3, scenes.SIZE, scenes.SIZE)


def test_training_goes_on_with_a_pipeline_that_was_exported(
    family: FlowFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2q.demo.train_flow.training_latents", lambda sizes, work: CLIPS)
    first, steps, sizes = tmp_path / "first", FlowSteps(2, 0, 2, 2), TINY[family.name]
    train_flow(family, first, tmp_path / "work", steps, sizes)
    no_steps, again = FlowSteps(0, 0, 0, 0), tmp_path / "again"
    train_flow(family, again, tmp_path / "more", no_steps, replace(sizes, start=first))
    fresh = tmp_path / "fresh"
    train_flow(family, fresh, tmp_path / "new", no_steps, sizes)
    for part in ("transformer", "vae", "text_encoder"):
        (stored,) = (first / part).glob("*.safetensors")
        assert stored.read_bytes() == (again / part / stored.name).read_bytes()
        assert stored.read_bytes() != (fresh / part / stored.name).read_bytes()


def test_nothing_to_export_is_said(family: FlowFamily, tmp_path: Path) -> None:
    (tmp_path / "diffusion.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"nothing to export yet: .* holds no decoder\.pt"):
        train_flow(family, tmp_path / "pipeline", tmp_path, FlowSteps(1, 1, 1, 1), TINY[family.name], export_now=True)


def test_minutes_are_shared_between_the_stages(family: FlowFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2q.demo.train_flow.seconds_a_step", lambda model, loss: float(loss(torch.Generator()) > 0))
    diffusion, guidance = {"wan": (4500, 0), "hunyuanvideo": (3900, 300)}[family.name]
    steps = FlowSteps(diffusion=diffusion, guidance=guidance, decoder=1200, encoder=300)
    assert plan_flow_steps(family, 100, TINY[family.name], "cpu") == steps
    assert plan_flow_steps(family, 1e-6, TINY[family.name], "cpu") == FlowSteps(1, 0, 1, 1)


def test_pairs_are_the_clips_that_were_encoded(tmp_path: Path) -> None:
    source = AutoencoderKLCogVideoX.from_pretrained(pipeline_dir(), subfolder="vae")
    clips = encode_training_clips(source, 1, tmp_path / "latents.pt")
    pairs = Pairs.of(clips, 1)
    assert pairs.pixels.shape == (8, scenes.FRAMES, scenes.SIZE, scenes.SIZE, 3)
    with torch.no_grad():
        found = source.encode(to_model(pairs.pixels[2:4])).latent_dist.mean
    assert (found - pairs.latents[2:4]).abs().mean() < 0.05 * pairs.latents.std()  # encoded in bfloat16
