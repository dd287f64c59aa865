"""What training feeds a transformer is what the family's own pipeline feeds it."""

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn

from s2q.demo import GENERATION, scenes
from s2q.demo.distillation import quieten
from s2q.demo.flow import FlowFamily
from s2q.demo.latents import LatentClips
from s2q.demo.train import FLOW_FAMILIES

CLIPS = LatentClips(
    torch.randn(8, 3, 16, 8, 8, generator=torch.Generator().manual_seed(0)).half() * torch.arange(1, 17).view(16, 1, 1),
    torch.arange(8),
)
CAPTIONS = [scene.caption for scene in scenes.all_scenes()[::70]]
TINY = {
    "wan": ({"heads": 2, "layers": 2}, {"base_dim": 4}),
    "hunyuanvideo": ({"heads": 2, "dual": 1, "single": 2}, {"block_out_channels": (8, 8, 8)}),
}
NATIVE = {"wan": WanAttnProcessor, "hunyuanvideo": HunyuanVideoAttnProcessor2_0}


@pytest.fixture(params=list(FLOW_FAMILIES))
def family(request: pytest.FixtureRequest) -> FlowFamily:
    return FLOW_FAMILIES[request.param]


def awake(family: FlowFamily) -> nn.ModuleDict:
    """An untrained denoiser without the zeros that would hide its blocks."""
    torch.manual_seed(0)
    denoiser = family.build_denoiser(**TINY[family.name][0])
    with torch.no_grad():
        for weight in denoiser["transformer"].parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return denoiser.eval()


@torch.no_grad()
def velocity(family: FlowFamily, denoiser: nn.ModuleDict, captions: list[str]) -> torch.Tensor:
    latents = torch.randn(len(captions), 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    timestep = torch.linspace(1, 1000, len(captions))
    conditions = family.encode(denoiser, family.tokenize(captions))
    return denoiser["transformer"](hidden_states=latents, timestep=timestep, **conditions, return_dict=False)[0]


def test_explicit_attention_is_the_native_one(family: FlowFamily) -> None:
    explicit = awake(family)
    native = copy.deepcopy(explicit)
    replaced = 0
    for module in native["transformer"].modules():
        if type(getattr(module, "processor", None)).__name__.startswith("Explicit"):
            module.set_processor(NATIVE[family.name]())
            replaced += 1
    assert replaced == {"wan": 4, "hunyuanvideo": 3}[family.name]
    expected = velocity(family, native, [*CAPTIONS, ""])
    torch.testing.assert_close(velocity(family, explicit, [*CAPTIONS, ""]), expected, rtol=1e-4, atol=1e-5)


def test_untrained_transformer_is_silent(family: FlowFamily) -> None:
    assert not velocity(family, family.build_denoiser(**TINY[family.name][0]), CAPTIONS).any()


@torch.no_grad()
def test_conditions_are_those_of_the_pipeline(family: FlowFamily) -> None:
    denoiser = awake(family)
    pipeline = family.assemble(quieten(family.build_autoencoder(CLIPS, **TINY[family.name][1])), denoiser)
    captions = [*CAPTIONS, ""]
    ours = family.encode(denoiser, family.tokenize(captions))
    settings = {"max_sequence_length": GENERATION[family.name]["max_sequence_length"], "device": torch.device("cpu")}
    if family.name == "wan":
        theirs = {"encoder_hidden_states": pipeline.encode_prompt(captions, "", False, **settings)[0]}
    else:
        settings["prompt_template"] = GENERATION[family.name]["prompt_template"]
        states, pooled, mask = pipeline.encode_prompt(captions, **settings)
        theirs = {
            "encoder_hidden_states": states,
            "pooled_projections": pooled,
            "encoder_attention_mask": mask.float(),
        }
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pipeline_undoes_the_normalization(family: FlowFamily) -> None:
    autoencoder = quieten(family.build_autoencoder(CLIPS, **TINY[family.name][1])).eval()
    pipeline = family.assemble(autoencoder, awake(family))
    pipeline.vae = autoencoder
    pipeline.set_progress_bar_config(disable=True)
    raw = CLIPS.latents[:2].float().transpose(1, 2)
    mean, std = family.normalization(CLIPS)
    mean, std = (torch.as_tensor(value).view(-1, 1, 1, 1) for value in (mean, std))
    settings = {**GENERATION[family.name], "num_inference_steps": 1, "output_type": "pt"}

    def to_these_latents(pipe: object, step: int, timestep: torch.Tensor, state: dict) -> dict:
        return {"latents": (raw - mean) / std}

    found = pipeline(CAPTIONS[:2], callback_on_step_end=to_these_latents, **settings).frames
    expected = (family.decode(autoencoder, raw).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_posterior_is_narrow(family: FlowFamily) -> None:
    autoencoder = quieten(family.build_autoencoder(CLIPS, **TINY[family.name][1]))
    posterior = autoencoder.encode(torch.rand(1, 3, 9, 32, 32)).latent_dist
    assert posterior.mean.shape == (1, 16, 3, 8, 8)
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -6.0))
