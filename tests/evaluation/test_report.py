"""The page holds everything it needs, claims nothing it was not told, and trusts no text it is given."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_clips import moving_square

from s2q.evaluation.report import OPTIONAL, ClipPair, ReportFigures, render_report, write_report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "br", "img", "image"}


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag was closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_nothing_is_fetched_from_anywhere(report: dict, figures: ReportFigures) -> None:
    text = render_report(report, figures)
    assert not re.search(r"https?://|//cdn|url\((?!#)|@import", text)
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "srcset", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"


def test_every_section_is_there(report: dict, figures: ReportFigures) -> None:
    page = Page(render_report(report, figures))
    assert [tag for tag, _ in page.tags].count("video") == 2 * len(figures.clips)
    assert [tag for tag, _ in page.tags].count("svg") == 7
    for words in (
        "5.63 MiB", "3.6 times smaller", "4.31", "30.0 dB", "± 1.5", "s2q run made-up --bits W4A6", "torch",
        "These numbers are made up.", "\N{MINUS SIGN}2.0 points", "The middle block.", "calibration prompt 4",
        "One clip took 3.1 s in full precision and 4.4 s quantized", "numbered as above. Good",
        "the same over 2 scales", "0.001 · 0.002 · 0.0043", "Flicker ratio", "\N{MINUS SIGN}0.5± 0.25",
        "0.2500", "+0.0100± 0.0020",
        "CLIPSIM, EvalCrafter's way", "The official VBench 0.1.5", "ScC", "61.25", "60.50",
        "Sound: SNR", "21.5", "3.25", "27.5 dB",
    ):  # fmt: skip
        assert words in page.text, words


def test_more_clips_may_be_measured_than_shown(report: dict, figures: ReportFigures) -> None:
    text = Page(render_report(report, dataclasses.replace(figures, clips=figures.clips[:1]))).text
    assert "numbered as above and on from there" in text


def test_clips_can_play_by_themselves_on_a_phone(report: dict, figures: ReportFigures) -> None:
    for tag, attributes in Page(render_report(report, figures)).tags:
        if tag == "video":
            assert {"muted", "loop", "autoplay", "playsinline", "aria-label"} <= set(attributes)
            assert attributes["src"].startswith("data:video/webm;base64,")


def test_silent_clips_offer_no_sound(report: dict, figures: ReportFigures) -> None:
    assert "sound" in [attributes.get("id") for _, attributes in Page(render_report(report, figures)).tags]
    silent = [dataclasses.replace(pair, reference_sound=None, candidate_sound=None) for pair in figures.clips]
    report["sound"] = None
    for clip in report["clips"]:
        clip["sound"] = None
    page = Page(render_report(report, dataclasses.replace(figures, clips=silent)))
    assert "sound" not in [attributes.get("id") for _, attributes in page.tags]
    assert "Sound" not in page.text


@pytest.mark.parametrize("key", OPTIONAL)
def test_each_section_may_be_missing(key: str, report: dict, figures: ReportFigures) -> None:
    del report[key]
    page = Page(render_report(report, figures))
    assert "None" not in page.text
    assert "undefined" not in page.text.lower()


@pytest.mark.parametrize("nothing", ["absent", "None", "empty"])
def test_the_least_report(nothing: str, report: dict) -> None:
    for key in OPTIONAL:
        value = report.pop(key)
        if nothing != "absent":
            report[key] = None if nothing == "None" else type(value)()
    page = Page(render_report(report, ReportFigures()))
    assert "None" not in page.text
    assert not {"video", "svg"} & {tag for tag, _ in page.tags}
    for claim in (
        "VBench",
        "CLIP",
        "by itself",
        "Size",
        "smaller",
        "read back",
        "The clips",
        "What it costs",
        "Prompt",
    ):
        assert claim not in page.text


def test_part_of_the_storage_and_fidelity_may_be_missing(report: dict, figures: ReportFigures) -> None:
    report["storage"] = {"bits_per_block_weight": 4.5}
    report["fidelity"] = {"psnr_db": float("nan")}
    page = Page(render_report(report, figures))
    assert "4.50" in page.text
    assert "smaller" not in page.text
    assert "SSIM, " not in page.text


def test_measures_may_be_missing_one_by_one(report: dict, figures: ReportFigures) -> None:
    del report["vbench"]["scores"]["float"], report["learned"]["measures"]["clipsim"]
    report["vbench"]["scores"]["quantized"].pop("scene")
    report["learned"]["measures"]["of a later version"] = {"float": 1.0}
    report["appearance"]["noise"] = {"float": 1.0}
    report["fidelity"] |= {"latent_error_early": None, "latent_error_late": None, "flicker_ratio": None}
    page = Page(render_report(report, figures))
    assert "None" not in page.text
    assert "Flicker ratio" not in page.text
    assert "\N{EN DASH} · 0.002 · \N{EN DASH}" in page.text
    assert "60.50" in page.text
    assert "61.25" not in page.text


def hostile(value: object) -> object:
    """``value`` with every text in it, keys of open dictionaries included, replaced by an attack."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return {key: hostile(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_hostile_text_stays_text(report: dict, figures: ReportFigures) -> None:
    report = hostile(report)
    report["versions"][HOSTILE] = report["seconds"][HOSTILE] = 1.0
    report["storage"]["parts"][HOSTILE] = [1, 2]
    for side in report["readback"].values():
        side[HOSTILE] = 0.5
    clips = [dataclasses.replace(pair, prompt=HOSTILE) for pair in figures.clips]
    figures = ReportFigures(clips, dataclasses.replace(figures.token_weights, caption=HOSTILE))
    text = render_report(report, figures)
    tags = Page(text).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert "img" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_only_the_page_s_own_script_may_run(report: dict, figures: ReportFigures) -> None:
    policy = next(a["content"] for tag, a in Page(render_report(report, figures)).tags if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, report: dict, figures: ReportFigures) -> None:
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, report, figures)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_report_read_back_from_json_looks_the_same(report: dict, figures: ReportFigures) -> None:
    assert render_report(json.loads(json.dumps(report)), figures) == render_report(report, figures)


def test_a_failed_report_leaves_the_old_one(tmp_path: Path, report: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_report(path, report, ReportFigures())
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_report(path, {**report, "seed": 9}, ReportFigures())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_file_is_as_readable_as_any_other(tmp_path: Path, report: dict) -> None:
    write_report(tmp_path / "report.html", report, ReportFigures())
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("report.html", "other")}
    assert len(modes) == 1


def test_mistakes_are_named(report: dict, figures: ReportFigures) -> None:
    with pytest.raises(ValueError, match="lacks bits, fidelity"):
        render_report({"recipe": "r", "seed": 0}, figures)
    report["clips"].reverse()
    with pytest.raises(ValueError, match="same order"):
        render_report(report, figures)
    with pytest.raises(ValueError, match="differ in shape"):
        ClipPair("p", 0, moving_square(), np.zeros((1, 8, 8, 3), np.uint8))
