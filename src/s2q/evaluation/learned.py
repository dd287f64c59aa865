"""Measures by learned models whose weights the user has: CLIP, DINO, and a linear aesthetic head. Nothing is fetched.

Each is given to the full-precision and to the quantized clip alike. A clip is uint8 [F, H, W, 3] (RGB), F >= 2.
What the papers of video quantization print as CLIPSIM and CLIP-Temp was computed with EvalCrafter's scripts
(arXiv 2310.11440), which give CLIP pixels of 0..255 where it was trained on normalised ones; both ways are here, under
names of their own, because only the first compares with printed tables and only the second with CLIP's own scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize
from transformers import CLIPModel, ViTModel

from s2q.evaluation.weights import digest, load_head, load_model, load_tokenizer, read_config

LEARNED = (
    "clipsim", "clip_temp", "clipsim_evalcrafter", "clip_temp_evalcrafter", "dino_consistency", "aesthetic_score",
)  # fmt: skip
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32


class Scorer(Protocol):
    """One learned model, and what it says of a clip."""

    source: dict[str, str]
    """``role``, ``folder`` (or ``file``) and ``sha256`` of the weights."""

    def __call__(self, clip: np.ndarray, prompt: str) -> dict[str, float]:
        """Scores of one clip, uint8 [F, H, W, 3], by names in :data:`LEARNED`."""


def mean_text_similarity(frames: Tensor, text: Tensor) -> float:
    """Mean cosine of each frame's feature with the prompt's; frames [F, D], text [D]."""
    return cosine_similarity(frames, text[None]).mean().item()


def mean_neighbour_similarity(frames: Tensor) -> float:
    """Mean cosine of the features of each frame and the next; frames [F, D]."""
    return cosine_similarity(frames[:-1], frames[1:]).mean().item()


def mean_consistency(frames: Tensor) -> float:
    """Mean over the frames from the second on of (cos to the frame before + cos to the first) / 2, negative cosines as 0.

    The formula of VBench's subject and background consistency (arXiv 2311.17982); frames [F, D].
    """
    before = cosine_similarity(frames[1:], frames[:-1]).clamp(min=0)
    first = cosine_similarity(frames[1:], frames[:1]).clamp(min=0)
    return ((before + first) / 2).mean().item()


def resize_shorter(frames: Tensor, size: int, mode: str, antialias: bool) -> Tensor:
    """Scale [F, 3, H, W] so that the shorter side is ``size``; the longer one is rounded down."""
    height, width = frames.shape[-2:]
    scaled = [int(size * length / min(height, width)) for length in (height, width)]
    return interpolate(frames, scaled, mode=mode, antialias=antialias, align_corners=False)


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` pixels of [F, 3, H, W]."""
    top, left = ((length - size) // 2 for length in frames.shape[-2:])
    return frames[..., top : top + size, left : left + size]


def normalised(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Grey levels 0..255 to what a model was trained on: divided by 255, mean taken off, divided by std."""
    return (frames / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class ClipScorer:
    """CLIPSIM and CLIP-Temp, as CLIP is meant to be used and as EvalCrafter's scripts use it.

    ``clipsim``: mean cosine of prompt and frame (CLIPSIM, arXiv 2104.14806); ``clip_temp``: of neighbouring frames
    (CLIP-Temp, arXiv 2302.03011). Frames go through CLIP's own preprocessing: shorter side to the model's size
    (bicubic, antialiased, whole grey levels), centre crop, normalised.
    ``…_evalcrafter``: frames squeezed to the model's square, bilinear without antialiasing, and given as 0..255;
    CLIPSIM's frames are rounded to whole grey levels, CLIP-Temp's are not.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self._model = load_model(CLIPModel, folder, device)
        self.source = {"role": "clip", "folder": folder.name, "sha256": digest(folder)}
        self._tokenizer = load_tokenizer(folder)
        self._size = self._model.config.vision_config.image_size

    def __call__(self, clip: np.ndarray, prompt: str) -> dict[str, float]:
        """See :class:`Scorer`; a prompt longer than CLIP reads is cut."""
        frames = frames_of(clip)
        text = self._text(prompt)
        proper = resize_shorter(frames, self._size, "bicubic", antialias=True).round().clamp(0, 255)
        proper = clip_features(self._model, normalised(centre_crop(proper, self._size), CLIP_MEAN, CLIP_STD))
        squeezed = interpolate(frames, (self._size, self._size), mode="bilinear", align_corners=False)
        return {
            "clipsim": mean_text_similarity(proper, text),
            "clip_temp": mean_neighbour_similarity(proper),
            "clipsim_evalcrafter": mean_text_similarity(clip_features(self._model, squeezed.round()), text),
            "clip_temp_evalcrafter": mean_neighbour_similarity(clip_features(self._model, squeezed)),
        }

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompt, return_tensors="pt", truncation=True, max_length=length)
        ids = tokens["input_ids"].to(self._model.device)
        return self._model.get_text_features(input_ids=ids).pooler_output[0].cpu()


class DinoScorer:
    """``dino_consistency``: how much a clip keeps its subject, by VBench's formula on DINO features.

    The feature is the class token after the last norm; frames are scaled to 224 pixels on the shorter side (bilinear,
    no antialiasing, no crop) and normalised as ImageNet. VBench's own number reads the clip from a compressed file.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self._model = load_model(ViTModel, folder, device, add_pooling_layer=False)
        self.source = {"role": "dino", "folder": folder.name, "sha256": digest(folder)}

    def __call__(self, clip: np.ndarray, prompt: str) -> dict[str, float]:
        """See :class:`Scorer`; the prompt is not used."""
        pixels = resize_shorter(frames_of(clip), self._model.config.image_size, "bilinear", antialias=False)

        def features(part: Tensor) -> Tensor:
            return self._model(part, interpolate_pos_encoding=True).last_hidden_state[:, 0]

        pixels = normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)
        return {"dino_consistency": mean_consistency(in_batches(features, pixels, self._model.device))}


class AestheticScorer:
    """``aesthetic_score``: a linear head on normalised CLIP features, divided by 10 and averaged over frames.

    With CLIP ViT-L/14 and LAION's ``sa_0_4_vit_l_14_linear.pth`` it is the formula of VBench's aesthetic quality;
    frames are scaled bicubically without antialiasing and cropped to the middle.
    """

    def __init__(self, head: Path, clip: Path, device: str = "cpu"):
        self._head = load_head(head)
        width, expected = self._head.in_features, read_config(CLIPModel, clip).projection_dim
        if width != expected:
            raise ValueError(
                f"the aesthetic head {head} takes {width} features, but CLIP at {clip} gives {expected}: "
                "name the CLIP it was trained on (ViT-L/14 for LAION's heads) with --aesthetic-clip"
            )
        self._model = load_model(CLIPModel, clip, device)
        self.source = {"role": "aesthetic", "file": head.name, "sha256": digest(head), "clip_sha256": digest(clip)}

    @torch.no_grad()
    def __call__(self, clip: np.ndarray, prompt: str) -> dict[str, float]:
        """See :class:`Scorer`; the prompt is not used."""
        size = self._model.config.vision_config.image_size
        pixels = centre_crop(resize_shorter(frames_of(clip), size, "bicubic", antialias=False), size)
        pixels = normalised(pixels, CLIP_MEAN, CLIP_STD)
        features = clip_features(self._model, pixels)
        return {"aesthetic_score": self._head(normalize(features, dim=-1)).mean().item() / 10}


def load_scorers(
    clip: Path | None = None,
    dino: Path | None = None,
    aesthetic: Path | None = None,
    aesthetic_clip: Path | None = None,
    device: str = "cpu",
) -> list[Scorer]:
    """The scorers whose weights are given; the aesthetic head's CLIP is ``clip`` unless it has one of its own.

    Raises:
        ValueError: something that is not such a model, or a head without a CLIP that fits it.
    """
    scorers: list[Scorer] = []
    if clip:
        scorers.append(ClipScorer(clip, device))
    if dino:
        scorers.append(DinoScorer(dino, device))
    if aesthetic_clip and not aesthetic:
        raise ValueError("--aesthetic-clip was given without --aesthetic, the head that needs it")
    if aesthetic:
        features = aesthetic_clip or clip
        if features is None:
            raise ValueError("--aesthetic is a head over CLIP features: also give --aesthetic-clip or --clip")
        scorers.append(AestheticScorer(aesthetic, features, device))
    return scorers


def frames_of(clip: np.ndarray) -> Tensor:
    """``clip``, uint8 [F, H, W, 3], as float32 [F, 3, H, W] in 0..255, after checking it."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or len(clip) < 2:
        raise ValueError(f"a clip must be uint8 [F, H, W, 3] with at least two frames, got {clip.dtype} {clip.shape}")
    return torch.from_numpy(clip).permute(0, 3, 1, 2).float()


@torch.no_grad()
def in_batches(features: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device) -> Tensor:
    """``features`` of all frames [F, 3, H, W], at most :data:`BATCH` at a time on ``device``: float32 [F, D], CPU."""
    return torch.cat([features(part.to(device)).float().cpu() for part in pixels.split(BATCH)])


def clip_features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """CLIP's projected image features [F, D] of [F, 3, H, W]."""
    return in_batches(lambda part: model.get_image_features(pixel_values=part).pooler_output, pixels, model.device)
