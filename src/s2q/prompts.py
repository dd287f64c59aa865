"""Prompts for calibration and evaluation: from a file, from the demo's world, or the few bundled here."""

import json
from pathlib import Path

from torch import Tensor

from s2q.media import INPUTS, Prompt
from s2q.models.pipelines import DEMOS

CALIBRATION = (
    "A fishing boat leaves a small harbour at dawn, gulls circling above the masts, fog lifting off the water.",
    "A potter's wet hands shape a tall clay vase on a spinning wheel, close up, warm light from a window.",
    "A red fox runs across a snowy field towards a birch forest, the camera following it from the side.",
    "Rain falls on a busy crossing in a city at night, neon signs mirrored in puddles, people with umbrellas.",
    "A train crosses a stone viaduct in green hills, seen from a drone that slowly circles it.",
    "An old man plays the accordion on a bench under chestnut trees while pigeons walk around his feet.",
    "Steam rises from a cup of coffee on a wooden table, pages of an open book turn in the wind.",
    "A scuba diver swims over a coral reef among yellow fish, rays of sunlight moving through blue water.",
    "A girl in a raincoat jumps into a puddle, water splashing in slow motion, her dog shaking itself.",
    "A potted sunflower grows from a seed to full bloom on a balcony, time lapse, clouds racing behind it.",
    "A blacksmith hammers glowing iron on an anvil, sparks flying in a dark workshop.",
    "Two children fly a paper kite on a wide beach, waves breaking, evening sun behind them.",
)
EVALUATION = (
    "A white horse gallops along the edge of the sea, its mane blowing, spray in the backlight.",
    "A chef tosses vegetables in a flaming pan in a crowded kitchen, hand-held camera.",
    "A paper boat drifts down a gutter in spring rain and passes under a bicycle.",
    "Northern lights ripple above a wooden cabin by a frozen lake, stars slowly turning.",
    "A tabby cat watches a goldfish swim in a round bowl on a windowsill, its tail twitching.",
    "A tram climbs a steep street between pastel houses, laundry moving on balconies.",
    "A ballet dancer turns on an empty stage in a single beam of light, dust in the air.",
    "A hot-air balloon rises from a misty valley at sunrise, seen from another balloon.",
)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines and lines that begin with # are passed over.

    A line that begins with { is JSON: `prompt`, and files by the pipeline's arguments, see `s2q.media.INPUTS`. Relative
    paths start at the folder of the file. Whether they can be read, `check_prompts` tells.

    Raises:
        ValueError: no such file, no prompt in it, or lines that are not JSON of that kind.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read prompts from {path}: {error}") from None
    prompts, wrong = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        try:
            prompts.append(_with_media(line, path.parent) if line.startswith("{") else line)
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise ValueError(f"{path}, {'; '.join(wrong)}")
    if not prompts:
        raise ValueError(f"{path} holds no prompt: write one a line")
    return prompts


def _with_media(line: str, folder: Path) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    words = entry.pop("prompt", None)
    if not isinstance(words, str) or not words.strip():
        raise ValueError('no "prompt" with words')
    media = {}
    for name, value in entry.items():
        files = value if isinstance(value, list) else [value]
        if name not in INPUTS:
            raise ValueError(f"{name!r} is not known beside a prompt: known are {', '.join(INPUTS)}")
        if not files or not all(isinstance(file, str) for file in files):
            raise ValueError(f"{name} must be a file's name, or a list of them")
        media[name] = [folder / file for file in files]
    return Prompt(words.strip(), **media)


def calibration_prompts(source: str, count: int, seed: int) -> list[str]:
    """`count` prompts to calibrate the pipeline `source` on, or all bundled ones if there are fewer."""
    if source in DEMOS:
        from s2q.demo.scenes import calibration_prompts as demo_prompts

        return demo_prompts(count, seed)
    return list(CALIBRATION[:count])


def evaluation_prompts(source: str, count: int) -> list[str]:
    """`count` prompts, none of them used for calibration, or all bundled ones if there are fewer."""
    if source in DEMOS:
        from s2q.demo.scenes import evaluation_prompts as demo_prompts

        return demo_prompts(count)
    return list(EVALUATION[:count])


def readback_of(source: str, prompt: str, clip: Tensor) -> dict[str, bool]:
    """Whether `clip`, uint8 [F, H, W, 3], shows each thing that its prompt names, read from its pixels.

    Empty for anything but the demos, at their own size: only their world is simple enough to be read.
    """
    if source not in DEMOS:
        return {}
    from s2q.demo.readback import can_read, read
    from s2q.demo.scenes import Scene

    if not can_read(clip):
        return {}
    return read(clip).matches(Scene.parse(prompt))
