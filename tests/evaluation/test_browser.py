"""The report as a reader sees it: opened in a real browser, its clips playing in step."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from made_up_clips import FPS

from s2q.evaluation.report import ReportFigures, write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_STATE = """return [...document.querySelectorAll('video')].map(v => ({
    time: v.currentTime, ready: v.readyState, width: v.videoWidth, paused: v.paused, length: v.duration}))"""


@pytest.fixture
def open_report(tmp_path: Path, report: dict, figures: ReportFigures) -> Iterator[Callable[..., Any]]:
    """A function which opens the report in a fresh browser of the given size and colour scheme."""
    path = tmp_path / "report.html"
    write_report(path, report, figures)
    drivers = []

    def opened(width: int = 1200, height: int = 1000, scheme: str = "light", motion: str = "no-preference") -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for flag in (*_FLAGS, f"--user-data-dir={tmp_path / f'profile-{len(drivers)}'}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        drivers.append(driver)
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": n, "value": v} for n, v in features.items()]}
        )
        driver.get(path.as_uri())
        return driver

    yield opened
    for driver in drivers:
        driver.quit()


def _wait(driver: Any, ready: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds} s; {driver.execute_script(_STATE)}"
        time.sleep(0.05)


def _visible(driver: Any) -> list[dict]:
    return [video for video in driver.execute_script(_STATE) if not video["paused"]]


def _apart(videos: list[dict]) -> float:
    """The largest distance between any clip and the first in seconds, the shorter way round the loop."""
    length = videos[0]["length"]
    late = [video["time"] - videos[0]["time"] for video in videos]
    return max(abs(seconds - length * round(seconds / length)) for seconds in late)


def _pixels(driver: Any) -> np.ndarray:
    """The screenshot: uint8 [H, W, 3]."""
    with av.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        return next(image.decode(video=0)).to_ndarray(format="rgb24")


def test_the_clips_play_in_step_and_nothing_complains(open_report: Callable[..., Any]) -> None:
    driver = open_report()
    _wait(driver, lambda: len(_visible(driver)) >= 2 and all(v["ready"] >= 2 for v in _visible(driver)), "playing")
    videos = _visible(driver)
    assert all(video["width"] == 256 for video in videos)
    assert videos[0]["length"] == pytest.approx(9 / FPS, abs=0.05)

    time.sleep(2.5)  # past two ends of the loop, where clips left to themselves drift apart
    samples = []
    for _ in range(20):
        samples.append(_visible(driver))
        time.sleep(0.07)
    assert len({sample[0]["time"] for sample in samples}) > 10, "currentTime does not advance"
    # A clip is a moment behind while it jumps to the start; most of the time all are within a frame.
    assert np.median([_apart(sample) for sample in samples]) < 0.6 / FPS
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    requests = [entry for entry in driver.get_log("performance") if "Network.requestWillBeSent" in entry["message"]]
    assert not [entry for entry in requests if '"url":"http' in entry["message"]]


def test_a_clip_knocked_out_of_step_comes_back(open_report: Callable[..., Any]) -> None:
    driver = open_report()
    _wait(driver, lambda: len(_visible(driver)) >= 2 and all(v["ready"] >= 2 for v in _visible(driver)), "playing")
    driver.execute_script("""
        const [leader, follower] = document.querySelectorAll('video');
        follower.currentTime = (leader.currentTime + leader.duration / 2) % leader.duration;""")
    _wait(driver, lambda: _apart(_visible(driver)) < 0.3 / FPS, "back in step")


def test_the_controls_do_what_they_say(open_report: Callable[..., Any]) -> None:
    driver = open_report()
    _wait(driver, lambda: bool(_visible(driver)), "playing")
    driver.find_element("id", "play").click()
    _wait(driver, lambda: not _visible(driver), "paused")
    paused = driver.execute_script(_STATE)
    assert driver.find_element("id", "play").text == "Play"

    canvas = driver.find_element("css selector", ".pair canvas")
    assert not canvas.is_displayed()
    driver.find_element("id", "difference").click()
    assert canvas.is_displayed()
    brightest = """
        const {width, height} = arguments[0];
        const {data} = arguments[0].getContext('2d').getImageData(0, 0, width, height);
        return data.reduce((most, value, index) => index % 4 < 3 ? Math.max(most, value) : most, 0);"""
    _wait(driver, lambda: driver.execute_script(brightest, canvas) > 50, "difference drawn")
    assert driver.execute_script(_STATE)[0]["time"] == paused[0]["time"], "paused clips moved"

    driver.find_element("css selector", "#speed option[value='0.25']").click()
    driver.find_element("id", "play").click()
    slow = "return document.querySelector('video').playbackRate"
    _wait(driver, lambda: driver.execute_script(slow) == 0.25, "slow")


def test_one_sound_is_heard_at_a_time(open_report: Callable[..., Any]) -> None:
    driver = open_report()
    _wait(driver, lambda: len(_visible(driver)) >= 2, "playing")
    muted = "return [...document.querySelectorAll('video')].map(video => video.muted)"
    assert all(driver.execute_script(muted))
    for side in (1, 0):
        driver.find_element("css selector", f"#sound option[value='{side}']").click()
        heard = [index for index, silent in enumerate(driver.execute_script(muted)) if not silent]
        assert heard == [side], "of the first pair on the screen, and of no other"
    driver.find_element("css selector", "#sound option[value='']").click()
    assert all(driver.execute_script(muted))


def test_clips_wait_for_readers_who_asked_for_less_motion(open_report: Callable[..., Any]) -> None:
    driver = open_report(motion="reduce")
    _wait(driver, lambda: all(v["ready"] >= 2 for v in driver.execute_script(_STATE)), "loaded")
    time.sleep(0.3)
    assert not _visible(driver)
    assert driver.find_element("id", "play").text == "Play"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_fits_the_screen_in_both_schemes(open_report: Callable[..., Any], width: int, scheme: str) -> None:
    driver = open_report(width, 1600, scheme)
    _wait(driver, lambda: any(v["ready"] >= 2 for v in _visible(driver)), "playing")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    picture = _pixels(driver)
    assert picture.shape == (1600, width, 3)
    paper = picture[2, 2].mean()
    assert paper < 60 if scheme == "dark" else paper > 230
    assert picture.std() > 20, "the page looks empty"


def test_colours_on_the_screen_are_those_of_the_clip(open_report: Callable[..., Any]) -> None:
    driver = open_report(motion="reduce")
    _wait(driver, lambda: driver.execute_script(_STATE)[0]["ready"] >= 2, "loaded")
    corner = driver.execute_script("""
        const canvas = document.createElement('canvas');
        canvas.getContext('2d').drawImage(document.querySelector('video'), 0, 0);
        return [...canvas.getContext('2d').getImageData(4, 4, 1, 1).data].slice(0, 3);""")
    assert np.abs(np.array(corner) - (125, 120, 118)).max() <= 4
