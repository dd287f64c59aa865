"""Clips survive being written and read; pages get the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from made_up_clips import FPS, moving_square

from s2q.evaluation import video
from s2q.evaluation.metrics import psnr_db


def test_mp4_round_trip_at_scale(tmp_path: Path) -> None:
    clip = moving_square()
    video.write_mp4(tmp_path / "clip.mp4", clip, FPS, scale=8)
    back = video.read_clip(tmp_path / "clip.mp4")
    assert back.shape == (9, 256, 256, 3)
    assert back.dtype == np.uint8
    assert psnr_db(clip, np.ascontiguousarray(back[:, 4::8, 4::8])) > 38


def test_webm_round_trip_and_duration(tmp_path: Path) -> None:
    clip = moving_square()
    (tmp_path / "clip.webm").write_bytes(video.webm_bytes(clip, FPS, scale=8))
    assert psnr_db(clip, np.ascontiguousarray(video.read_clip(tmp_path / "clip.webm")[:, 4::8, 4::8])) > 38
    with av.open(str(tmp_path / "clip.webm")) as opened:
        assert opened.duration / av.time_base == pytest.approx(len(clip) / FPS, abs=0.01)
        assert opened.streams.video[0].codec_context.name == "vp9"


@pytest.mark.parametrize(("height", "width"), [(17, 16), (16, 19), (21, 33)])
def test_odd_sizes_are_padded_with_their_own_edge(tmp_path: Path, height: int, width: int) -> None:
    clip = moving_square()[:, :height, :width]
    clip = np.pad(clip, ((0, 0), (0, 0), (0, max(0, width - clip.shape[2])), (0, 0)), mode="edge")
    video.write_mp4(tmp_path / "odd.mp4", clip, FPS)
    back = video.read_clip(tmp_path / "odd.mp4")
    assert back.shape[1:3] == (height + height % 2, width + width % 2)
    if width % 2:
        assert np.abs(back[:, :, -1].astype(int) - back[:, :, -2]).mean() < 6


def test_the_same_clip_gives_the_same_bytes() -> None:
    clip = moving_square(noise=6)
    assert video.webm_bytes(clip, FPS, 8) == video.webm_bytes(clip, FPS, 8)


def test_another_codec_takes_over_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_MP4_ENCODERS", (("no-such-encoder", {}), *video._MP4_ENCODERS[1:]))
    clip = moving_square()
    video.write_mp4(tmp_path / "clip.mp4", clip, FPS, scale=4)
    assert psnr_db(video.enlarge(clip, 4), video.read_clip(tmp_path / "clip.mp4")) > 30


def test_enlarging_repeats_pixels() -> None:
    clip = moving_square(noise=9)
    large = video.enlarge(clip, 3)
    assert large.shape == (9, 96, 96, 3)
    assert all((large[:, y::3, x::3] == clip).all() for y in range(3) for x in range(3))


@pytest.mark.parametrize(("size", "scale"), [(32, 8), (100, 3), (256, 1), (480, 1)])
def test_small_clips_become_visible(size: int, scale: int) -> None:
    assert video.visible_scale(np.zeros((1, size, size + 8, 3), np.uint8)) == scale


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        video.webm_bytes(np.zeros((2, 8, 8, 3)), FPS)
    with pytest.raises(ValueError, match="at least one pixel"):
        video.write_mp4(tmp_path / "none.mp4", np.zeros((0, 8, 8, 3), np.uint8), FPS)
    with pytest.raises(ValueError, match="scale"):
        video.webm_bytes(moving_square(), FPS, scale=0)
