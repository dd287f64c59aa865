"""LTX-2 calls its transformer three times a step, twice perturbed: every call is recorded, replayed and calibrated on."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import LayerSkipConfig, SkipLayerGuidance
from tiny import CHEAP, PROMPTS, STEPS, calls_by_step, cheap, folder_bytes
from tiny_pipelines import PIPELINES
from torch import Tensor
from typer.testing import CliRunner

from s2q.assessment import evaluate
from s2q.calibration.recording import record_trajectories
from s2q.calibration.trajectory import TrajectoryStore
from s2q.checkpoint import PROVENANCE_NAME
from s2q.cli import app
from s2q.evaluation.video import read_clip, read_sound
from s2q.models.blocks import record_calls, replay
from s2q.models.geometry import geometry
from s2q.models.pipelines import OpenPipeline, PipelineError, load_transformer, open_pipeline
from s2q.progress import NoProgress
from s2q.quantization.objective import BlockSample
from s2q.quantization.statistics import input_statistics
from s2q.quantization.tokens import received_by_block, token_weights
from s2q.run import quantize
from s2q.storage import derived_seed

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers about itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return PIPELINES["ltx2-perturbed"].save(tmp_path_factory.mktemp("ltx2") / "pipeline")


@pytest.fixture
def opened(folder: Path) -> OpenPipeline:
    return PIPELINES["ltx2-perturbed"].open(folder)


@pytest.fixture
def store(opened: OpenPipeline, tmp_path: Path) -> TrajectoryStore:
    return record_trajectories(opened, PROMPTS[:1], 0, tmp_path / "recorded", NoProgress())


def blocks_of(opened: OpenPipeline, arguments: dict[str, Any]) -> list[BlockSample]:
    """Every block as a call of the transformer calls it, replayed: the target is what it leaves of the video alone."""
    family, samples = opened.family, []
    recorded = record_calls(opened.transformer, family, arguments)
    states = recorded.first
    for (_, block), sides in zip(family.blocks(opened.transformer), recorded.sides, strict=True):
        entering, states = states, replay(block, family, states, sides)
        samples.append(BlockSample(entering, sides, states["hidden_states"]))
    return samples


@torch.no_grad()
def test_every_call_of_a_step_repeats_the_pipelines_output_bit_for_bit(
    opened: OpenPipeline, store: TrajectoryStore
) -> None:
    outputs: list[tuple[Tensor, Tensor]] = []
    handle = opened.transformer.register_forward_hook(lambda module, args, output: outputs.append(output))
    steps, _ = calls_by_step(opened, PROMPTS[0], derived_seed(0, "trajectory", 0))
    handle.remove()
    assert [len(calls) for calls in steps] == [3] * STEPS
    assert store.calls(0) == 3
    assert not torch.equal(outputs[1][0], outputs[2][0]), "one call is not another"
    for index, expected in enumerate(outputs):
        made = opened.transformer(**store.arguments(0, index // 3, call=index % 3))
        assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


@torch.no_grad()
def test_perturbed_calls_are_replayed_block_by_block_with_difference_0(
    opened: OpenPipeline, store: TrajectoryStore
) -> None:
    left: list[dict[str, Tensor]] = []
    for _, block in opened.family.blocks(opened.transformer):
        block.register_forward_hook(lambda module, args, output: left.append(output))
    for call in range(3):
        arguments = store.arguments(0, 1, call=call)
        samples = blocks_of(opened, arguments)
        left.clear()
        opened.transformer(**arguments)
        assert all(torch.equal(own.target, whole[0]) for own, whole in zip(samples, left, strict=True))


@torch.no_grad()
def test_tokens_weigh_alike_where_a_perturbed_call_leaves_their_attention_out(
    opened: OpenPipeline, store: TrajectoryStore
) -> None:
    arguments = store.arguments(0, 1, call=1)
    with pytest.raises(RuntimeError, match=r"blocks \[1\]"):
        received_by_block(opened.transformer, opened.family, arguments)
    first, second = received_by_block(opened.transformer, opened.family, arguments, perturbed=True)
    assert token_weights(first).unique().numel() > 2
    assert bool((token_weights(second) == 1.0).all())


def test_a_linear_that_a_perturbed_call_leaves_out_is_known_from_the_other_calls(
    opened: OpenPipeline, store: TrajectoryStore
) -> None:
    samples = [blocks_of(opened, store.arguments(0, 1, call=call))[1] for call in range(3)]
    block = opened.transformer.transformer_blocks[1]
    groups = [("attn1.to_q",), ("attn1.to_v",), ("audio_to_video_attn.to_q",)]
    seen = input_statistics(block, opened.family, groups, samples)
    assert [seen[group].seen_in for group in groups] == [[0, 2], [0, 1, 2], [0, 1]]


@pytest.mark.parametrize(
    "change", ["optim.batch_size=2", "optim.propagate_error=true", "linear.transform.statistic=early"]
)
def test_every_call_of_a_sample_is_calibrated_on_whatever_the_recipe(
    change: str, opened: OpenPipeline, tmp_path: Path
) -> None:
    made = quantize(opened, cheap("s2q_vdit", "W4A6", change), tmp_path / "out", prompts=PROMPTS)
    provenance = json.loads((made.folder / PROVENANCE_NAME).read_text())
    assert len(provenance["samples"]) == 2
    assert all(0 < block["after"] < 1 for block in provenance["blocks"])
    kept = sorted(path.stem for path in (tmp_path / "out.work" / "token_weights").iterdir())
    assert len(kept) == 2 * 3
    assert sum("call-1" in name for name in kept) == sum("call-2" in name for name in kept) == 2


def test_streamed_and_with_its_texts_encoded_first_it_becomes_the_same(folder: Path, tmp_path: Path) -> None:
    recipe = cheap("s2q_vdit", "W4A6")
    streamed = open_pipeline(str(folder), stream=True, **PIPELINES["ltx2"].call)
    streamed.disposable_text = True
    quantize(PIPELINES["ltx2"].open(folder), recipe, tmp_path / "memory", prompts=PROMPTS)
    quantize(streamed, recipe, tmp_path / "disk", prompts=PROMPTS)
    assert folder_bytes(tmp_path / "disk") == folder_bytes(tmp_path / "memory")


def test_rows_of_further_calls_are_planned_for(opened: OpenPipeline) -> None:
    def branches(**call: float) -> int:
        return geometry(opened.family, opened.transformer.config, (4, 8), opened.call | call).branches

    assert branches() == 4
    assert branches(stg_scale=0.0, modality_scale=1.0) == 4, "sound is guided still"
    assert branches(stg_scale=0.0, audio_stg_scale=0.0) == 3
    assert branches(modality_scale=1.0, audio_modality_scale=1.0, guidance_scale=1.0) == 2


def test_a_video_whose_length_is_left_open_is_planned_as_the_pipeline_makes_it(opened: OpenPipeline) -> None:
    call = {name: value for name, value in opened.call.items() if name != "num_frames"}
    assert geometry(opened.family, opened.transformer.config, (4, 8), call).latent[0] == 1 + 120 // 4


def test_from_the_command_line_it_is_quantized_and_makes_a_clip_that_is_heard(folder: Path, tmp_path: Path) -> None:
    size = ["--steps", "2", "--height", "32", "--width", "32", "--num-frames", "5"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    changes = [option for change in CHEAP for option in ("--set", change)]
    made, clip = tmp_path / "made", tmp_path / "clip.mp4"
    for command in (
        ["quantize", str(folder), "--recipe", "gptq", "--prompts", str(prompts), "-o", str(made), *changes, *size],
        ["generate", str(folder), "--transformer", str(made), "--prompt", PROMPTS[0], "-o", str(clip), *size],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert read_clip(clip).shape[0] == 5
    sound = read_sound(clip)
    assert np.abs(sound.samples).max() > 0
    with av.open(str(clip)) as video:
        assert video.streams.video[0].average_rate == 24


def test_sound_is_compared_with_that_of_full_precision(folder: Path, opened: OpenPipeline, tmp_path: Path) -> None:
    made = quantize(opened, cheap("gptq", "W4A4"), tmp_path / "out", prompts=PROMPTS)
    model = load_transformer(made.folder, torch.float32)
    again = PIPELINES["ltx2-perturbed"].open(folder)
    with torch.no_grad():
        done = evaluate(again, model, made.folder, tmp_path / "report", prompts=PROMPTS[:1])
        same = evaluate(again, again.transformer, made.folder, tmp_path / "same", prompts=PROMPTS[:1])
    sound = done.twins[0].reference_sound
    assert sound.samples.dtype == np.float32
    assert sound.rate == again.pipe.vocoder.config.output_sampling_rate
    assert done.report["sound"]["snr_db"] < 99
    assert same.report["sound"] == {"snr_db": 100.0, "log_spectral_distance_db": 0.0}
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["sound"] == done.report["sound"]
    for side in ("float", "quantized"):
        assert read_sound(tmp_path / "report" / "clips" / f"clip-0000-{side}.mp4") is not None
    assert 'id="sound"' in (tmp_path / "report" / "report.html").read_text()


def test_a_guider_that_skips_layers_by_hooks_is_refused(tmp_path: Path) -> None:
    made = PIPELINES["hunyuan-1.5"]
    opened = made.open(made.save(tmp_path / "pipeline"))
    skipped = LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
    opened.pipe.guider = SkipLayerGuidance(
        skip_layer_config=skipped, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    )
    with pytest.raises(PipelineError, match=r"hangs hooks on its transformer.*ClassifierFreeGuidance"):
        record_trajectories(opened, PROMPTS[:1], 0, tmp_path, NoProgress())
