"""Clips to video and back.

A clip is uint8 [F, H, W, 3] RGB. Files are written as H.264 (what players expect), clips inside a page as VP9 in WebM
(what a browser without licensed codecs still plays). Both store colour at half resolution and need even sizes: odd
ones are padded by repeating the last row and column.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

# First choice first: a PyAV built without x264 still writes something every player opens.
_MP4_ENCODERS = (("libx264", {"crf": "12", "preset": "medium"}), ("mpeg4", {"qscale": "2"}))
# One thread and no row threads: libvpx is then deterministic, and so is the report.
_WEBM_ENCODERS = (
    ("libvpx-vp9", {"crf": "14", "b": "0", "threads": "1", "row-mt": "0", "deadline": "good", "cpu-used": "4"}),
)

_BT709 = 1  # the number of this standard in every one of FFmpeg's colour enumerations


def visible_scale(clip: np.ndarray, least: int = 256) -> int:
    """The smallest whole factor which makes the shorter side of ``clip`` [F, H, W, 3] at least ``least`` pixels."""
    return max(1, -(-least // min(clip.shape[1:3])))


def enlarge(clip: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel ``scale`` times each way: uint8 [F, H, W, 3] -> [F, scale*H, scale*W, 3]."""
    if scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale}")
    return clip.repeat(scale, axis=1).repeat(scale, axis=2)


def _checked(clip: np.ndarray) -> np.ndarray:
    clip = np.asarray(clip)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise ValueError(f"a clip must be uint8 [F, H, W, 3] with at least one pixel, got {clip.dtype} {clip.shape}")
    return clip


def _encoder(choices: tuple[tuple[str, dict[str, str]], ...]) -> tuple[str, dict[str, str]]:
    for name, options in choices:
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name, options
    raise RuntimeError(f"this PyAV has none of the encoders {[name for name, _ in choices]}; install PyAV's own wheel")


def _encode(
    clip: np.ndarray, fps: float, scale: int, container: str, choices: tuple[tuple[str, dict[str, str]], ...]
) -> bytes:
    clip = enlarge(_checked(clip), scale)
    clip = np.pad(clip, ((0, 0), (0, clip.shape[1] % 2), (0, clip.shape[2] % 2), (0, 0)), mode="edge")
    codec, options = _encoder(choices)
    target = io.BytesIO()
    # Bit-exact: no random identifiers and no dates in the container.
    with av.open(target, "w", format=container, container_options={"fflags": "+bitexact"}) as video:
        stream = video.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # Say which matrix the colours were made with, or every player guesses by its own rule.
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        for image in clip:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            video.mux(stream.encode(frame))
        video.mux(stream.encode(None))
    return target.getvalue()


def write_mp4(path: Path, clip: np.ndarray, fps: float, scale: int = 1) -> None:
    """Write ``clip`` as an MP4 file, each pixel enlarged to ``scale`` x ``scale``.

    Args:
        path: overwritten where it exists; its folder must.
        clip: uint8 [F, H, W, 3].
        fps: frames per second.
    """
    Path(path).write_bytes(_encode(clip, fps, scale, "mp4", _MP4_ENCODERS))


def webm_bytes(clip: np.ndarray, fps: float, scale: int = 1) -> bytes:
    """``clip``, uint8 [F, H, W, 3], as a WebM file in memory, for a page; the same bytes for the same clip."""
    return _encode(clip, fps, scale, "webm", _WEBM_ENCODERS)


def read_clip(path: Path) -> np.ndarray:
    """Every frame of a video file: uint8 [F, H, W, 3], the size as stored (enlarged and padded)."""
    with av.open(str(path)) as video:
        frames = [
            frame.reformat(format="rgb24", dst_color_range=ColorRange.JPEG).to_ndarray()
            for frame in video.decode(video=0)
        ]
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return np.stack(frames)
