"""Clips to video and back.

A clip is uint8 [F, H, W, 3] RGB. Files are written as H.264 and AAC (what players expect), clips inside a page as VP9 and
Opus in WebM (what a browser without licensed codecs still plays). Both store colour at half resolution and need even
sizes: odd ones are padded by repeating the last row and column.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from s2q.evaluation.sound import Sound

# First choice first: a PyAV built without x264 still writes something every player opens.
_MP4_ENCODERS = (("libx264", {"crf": "12", "preset": "medium"}), ("mpeg4", {"qscale": "2"}))
# One thread and no row threads: libvpx is then deterministic, and so is the report.
_WEBM_ENCODERS = (
    ("libvpx-vp9", {"crf": "14", "b": "0", "threads": "1", "row-mt": "0", "deadline": "good", "cpu-used": "4"}),
)

_SOUND_ENCODERS = {"mp4": ("aac", 128_000), "webm": ("libopus", 96_000)}
_OPUS_RATE = 48_000  # it knows few rates: everything is resampled to the one that it works at

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
    clip: np.ndarray,
    fps: float,
    scale: int,
    container: str,
    choices: tuple[tuple[str, dict[str, str]], ...],
    sound: Sound | None,
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
        heard = None if sound is None else _sound_stream(video, container, sound)
        for image in clip:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            video.mux(stream.encode(frame))
        video.mux(stream.encode(None))
        if heard is not None:
            _mux_sound(video, heard, sound)
    return target.getvalue()


def _sound_stream(video: av.container.OutputContainer, container: str, sound: Sound) -> av.AudioStream:
    codec, bit_rate = _SOUND_ENCODERS[container]
    stream = video.add_stream(codec, rate=_OPUS_RATE if codec == "libopus" else sound.rate)
    stream.layout = _layout(sound)
    stream.bit_rate = bit_rate
    return stream


def _mux_sound(video: av.container.OutputContainer, stream: av.AudioStream, sound: Sound) -> None:
    samples = np.ascontiguousarray(sound.samples.clip(-1, 1))
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=_layout(sound))
    frame.sample_rate = sound.rate
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, context.layout, context.sample_rate, context.frame_size)
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        video.mux(stream.encode(piece))
    video.mux(stream.encode(None))


def _layout(sound: Sound) -> str:
    return "mono" if len(sound.samples) == 1 else "stereo"


def write_mp4(path: Path, clip: np.ndarray, fps: float, scale: int = 1, sound: Sound | None = None) -> None:
    """Write ``clip`` as an MP4 file, each pixel enlarged to ``scale`` x ``scale``.

    Args:
        path: overwritten where it exists; its folder must.
        clip: uint8 [F, H, W, 3].
        fps: frames per second.
        sound: beside it, from the first frame on.
    """
    Path(path).write_bytes(_encode(clip, fps, scale, "mp4", _MP4_ENCODERS, sound))


def webm_bytes(clip: np.ndarray, fps: float, scale: int = 1, sound: Sound | None = None) -> bytes:
    """``clip``, uint8 [F, H, W, 3], as a WebM file in memory, for a page; the same bytes for the same clip."""
    return _encode(clip, fps, scale, "webm", _WEBM_ENCODERS, sound)


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


def read_sound(path: Path) -> Sound | None:
    """The sound of a video file as stored; None where it has none."""
    with av.open(str(path)) as video:
        if not video.streams.audio:
            return None
        pieces = [frame.to_ndarray() for frame in video.decode(audio=0)]
        return Sound(np.concatenate(pieces, axis=1).astype(np.float32), video.streams.audio[0].rate)
