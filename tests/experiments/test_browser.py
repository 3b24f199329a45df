"""A report seen by headless Chromium: it loads nothing, complains of nothing, fits a phone, opens and prints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mithridate.experiments.report import write_report
from tests.experiments import grids

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on the PATH")

WIDTHS = (360, 768, 1280)
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    pairs = (*grids.grid_pairs(targets=2), *grids.transfer_pairs(targets=2))
    return write_report(grids.write(folder, iter(pairs), poisons=2))


def browse(page: Path, folder: Path, *flags: str, fragment: str = "") -> tuple[str, list[str], list[str]]:
    """(what was printed, console messages, addresses that the page asked for)."""
    log = folder / "net.json"
    command = [str(BROWSER), "--headless=new", "--no-sandbox", *QUIET, f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--log-net-log={log}"]
    command += [*flags, page.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console, _asked(json.loads(log.read_text(encoding="utf-8")))


def _asked(log: dict) -> list[str]:
    """Requests that a page started; what the browser asks for itself has no origin."""
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [event["params"] for event in log["events"] if event["type"] == start and "url" in event.get("params", {})]
    urls = [params["url"] for params in begun if params.get("initiator") != "not an origin"]
    return [url for url in urls if not url.startswith("file:")]


def test_it_asks_for_nothing_and_the_console_is_empty(report, tmp_path):
    dom, console, asked = browse(report, tmp_path, "--dump-dom")
    assert "Attacks against defences" in dom
    assert console == []
    assert asked == []


def test_a_page_that_loads_something_would_be_noticed(report, tmp_path):
    text = report.read_text(encoding="utf-8")
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    loads = '<img src="http://example.invalid/a.png" alt=""><script>console.warn("noticed")</script></body>'
    (tmp_path / "page.html").write_text(free.replace("</body>", loads), encoding="utf-8")
    _, console, asked = browse(tmp_path / "page.html", tmp_path, "--dump-dom")
    assert asked == ["http://example.invalid/a.png"]
    assert any("noticed" in line for line in console)
    (tmp_path / "kept.html").write_text(text.replace("</body>", loads), encoding="utf-8")
    _, console, asked = browse(tmp_path / "kept.html", tmp_path, "--dump-dom")
    assert asked == []  # the page's own policy stops both
    assert len(console) >= 2


def test_no_width_scrolls_sideways_and_a_link_opens_its_trials(report, tmp_path):
    """Frames have any width, windows do not; the copies carry a probe that a report never has."""
    probe = """<script>addEventListener("load", () => {
      const wide = document.documentElement.scrollWidth, taps = [...document.querySelectorAll("a.box, summary, nav a")];
      const least = Math.min(...taps.filter(t => t.offsetHeight).map(t => t.getBoundingClientRect().height));
      const sizes = [...document.querySelectorAll("main *")].filter(e => e.offsetHeight && !e.closest("svg"))
        .map(e => parseFloat(getComputedStyle(e).fontSize));
      const target = document.querySelector(":target");
      parent.postMessage([innerWidth, wide, least, Math.min(...sizes), target && target.offsetHeight > 0], "*");
    })</script></body>"""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    (tmp_path / "page.html").write_text(free.replace("</body>", probe), encoding="utf-8")
    frames = "".join(f'<iframe src="page.html#cell-5" style="width:{w}px;height:900px"></iframe>' for w in WIDTHS)
    reader = '<script>onmessage = e => document.body.append(` [${e.data.join(" ")}]`)</script>'
    style = "<style>iframe { border: 0 }</style>"
    (tmp_path / "frame.html").write_text(f"<!doctype html>{style}<body>{reader}{frames}</body>", encoding="utf-8")
    dom, _, _ = browse(tmp_path / "frame.html", tmp_path, "--dump-dom", "--virtual-time-budget=5000")
    found = {int(width): rest for width, *rest in re.findall(r"\[(\d+) (\d+) ([\d.]+) ([\d.]+) (\w+)\]", dom)}
    assert set(found) == set(WIDTHS), dom[-500:]
    for width, (wide, least, size, opened) in found.items():
        assert int(wide) <= width
        assert float(least) >= 32  # CSS pixels; WCAG 2.2 asks for 24 of what is tapped
        assert float(size) >= 10.5
        assert opened == "true"


def test_it_is_drawn_and_prints(report, tmp_path):
    shot, paper = tmp_path / "shot.png", tmp_path / "paper.pdf"
    browse(report, tmp_path, f"--screenshot={shot}", "--window-size=1280,2000")
    pixels = np.array(Image.open(shot).convert("RGB"))
    assert pixels.shape[:2] == (2000, 1280)
    assert pixels.std() > 5
    assert (np.abs(pixels.astype(int) - (0x7A, 0x1C, 0x0D)).sum(2) < 6).mean() > 0.005  # boxes of the darkest red
    browse(report, tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 60
