"""The report of a made-up study: complete, safe, offline; and looked at by a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mithridate.experiments import pictures
from mithridate.experiments.report import collect, write_report
from mithridate.experiments.table import table
from tests.experiments import synthetic as made

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags in order; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return made.make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def text(study) -> str:
    path = write_report(study)
    assert path == study / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_nothing_is_fetched(page, text):
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert not page.all("script")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_names_from_data_are_escaped(text):
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "loss is &lt;nan&gt; after 3 epochs" in text


def test_names_in_plots_are_escaped(tmp_path):
    bad = '<img src=x onerror="1">$x_1$&'
    for attack in (bad, "random-noise"):
        for seed in range(2):
            settings = made.trial(attack, made.TARGETED, {"type": bad}, seed=seed)
            place = tmp_path / "trials" / made.name_of(settings)
            place.mkdir(parents=True)
            (place / "trial.json").write_text(json.dumps(settings))
            (place / "result.json").write_text(json.dumps(made.result(settings, [[0]], [[0.0]], [0.5])))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert all((a.get("src") or "").startswith("data:") for a in page.all("img"))
    assert any(bad in t for t in page.texts)


def test_every_sentence_of_the_table_is_in_it(study, page):
    whole = " ".join("".join(page.texts).replace("\u00a0", " ").split())
    made_table = table(collect(study).pairs)
    for sentence in (*made_table.verdict(), *made_table.defenses()):
        assert sentence in whole
    assert "4 of 7 attack settings are shown to beat the control." in whole
    assert "mithridate audit --data data/cifar10 --preset small" in whole
    assert "The attacker may replace up to 2 % of the training images (here 100 of 5,000)" in whole


def test_failed_and_missing_trials_are_listed(study, text):
    found = collect(study)
    assert len(found.pairs) == len(made.pairs())
    assert len(found.problems) == 2
    assert "failed with ValueError: loss is &lt;nan&gt;" in text
    assert "not finished" in text


def test_it_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    svgs = page.all("svg")
    assert svgs
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in svgs)
    assert any("witches-brew 45 % (26 to 66 %; 9 of 20) against random-noise 5 %" in str(s["aria-label"]) for s in svgs)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "href", "xlink:href"):
            value = attributes.get(name)
            if value and not value.startswith("data:"):
                assert value.lstrip("#") in ids


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_in_light_and_dark(text):
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    full = [p for p in palettes if "paper" in p]
    assert len(full) >= 2
    for palette in full:
        for name in ("ink", "faint", "attack", "defense", "shown", "margins", "open"):
            bright, dim = sorted((_luminance(palette["paper"]), _luminance(palette[name])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, name


def test_pixels_are_those_of_the_poison(page):
    base = made.digits(13).numpy()
    clean = next(i["src"] for i in page.all("img") if i["alt"] == "Clean training image 0")
    assert clean is not None
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(clean.partition(",")[2]))))
    assert (pixels == base[0, 0]).all()
    moved = [i["alt"] for i in page.all("img") if str(i["alt"]).startswith("Poisoned")]
    assert len(moved) == 3 * 8  # three attacks, eight of their twelve poisons each
    assert "Poisoned training image 0, Linf 16/255" in str(moved[0])


def test_norms_of_a_poison_are_measured_on_its_pixels():
    from mithridate.experiments.report import _shown

    base = np.zeros((3, 2, 2), np.uint8)
    image = base.copy()
    image[0, 0, 0], image[2, 1, 1] = 30, 40
    assert _shown(7, image, base).moved == "Linf 40/255, L2 0.20"  # 50 / 255
    assert _shown(7, image, None).difference is None


def test_difference_is_amplified_around_grey_and_clipped():
    base, image = np.full((1, 1, 4), 100, np.uint8), np.array([[[100, 102, 99, 200]]], np.uint8)
    assert pictures.amplified(base, image).tolist() == [[[128, 168, 108, 255]]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_pixels(channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
    back = np.array(Image.open(io.BytesIO(base64.b64decode(pictures.png(image).partition(",")[2]))))
    expected = image.transpose(1, 2, 0) if channels == 3 else image[0]
    assert (back == expected).all()


# --- what may be missing ---------------------------------------------------------------------------------------------


def test_the_same_study_gives_the_same_file(study, text, tmp_path):
    assert write_report(study, tmp_path / "deep" / "again.html").read_text(encoding="utf-8") == text


def test_a_study_without_poisons_study_json_or_controls_still_has_a_report(tmp_path):
    settings = made.trial("witches-brew", made.TARGETED)
    place = tmp_path / "trials" / "a"
    place.mkdir(parents=True)
    (place / "trial.json").write_text(json.dumps(settings))
    (place / "result.json").write_text(json.dumps(made.result(settings, [[1]], [[1.0]], [0.6])))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "no control was run beside it, so nothing is shown." in text
    assert "The command was not recorded" in text
    assert "No random-noise control beside witches-brew." in text


def test_the_headline_counts_what_beat_no_attack_alone_separately(tmp_path):
    for attack, hit in (("witches-brew", 1), ("no-attack", 0)):
        for seed in range(6):
            settings = made.trial(attack, made.TARGETED, seed=seed)
            place = tmp_path / "trials" / made.name_of(settings)
            place.mkdir(parents=True)
            (place / "trial.json").write_text(json.dumps(settings))
            (place / "result.json").write_text(json.dumps(made.result(settings, [[hit]], [[0.0]], [0.6])))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "0 of 1 attack setting is shown to beat the control; 1 to beat no attack" in text
    assert "Beats no attack" in text


def test_nothing_finished_is_reported_too(tmp_path):
    (tmp_path / "trials" / "a").mkdir(parents=True)
    (tmp_path / "trials" / "a" / "trial.json").write_text(json.dumps(made.trial("badnets", made.BACKDOOR)))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "No attack has finished, so nothing is shown." in text


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "outcome": {"success": [[{}]]}}']
)
def test_a_damaged_result_is_listed_and_the_others_stay(tmp_path, content):
    good = made.trial("witches-brew", made.TARGETED)
    for name, result in (("good", json.dumps(made.result(good, [[1]], [[1.0]], [0.6]))), ("bad", content)):
        (tmp_path / "trials" / name).mkdir(parents=True)
        (tmp_path / "trials" / name / "trial.json").write_text(json.dumps(good | {"seed": len(name)}))
        (tmp_path / "trials" / name / "result.json").write_text(result)
    found = collect(tmp_path)
    assert len(found.pairs) == 1
    assert any("(bad)" in problem for problem in found.problems)
    Page(write_report(tmp_path).read_text(encoding="utf-8"))


def test_a_damaged_poison_is_left_out(tmp_path):
    folder = made.make_study(tmp_path, targets=2, cases=2)
    for path in folder.glob("poisons/*/poison.safetensors"):
        path.write_bytes(b"broken")
    text = write_report(folder).read_text(encoding="utf-8")
    assert "What the poison looks like" not in text


def test_a_folder_without_trials_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no trials/ folder"):
        write_report(tmp_path)


# --- seen by a browser -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium on the PATH to look at the page")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_it_without_overflow(text, width, tmp_path):
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # so that the probe may run
    (tmp_path / "page.html").write_text(free.replace("</body>", probe), encoding="utf-8")
    # windows have a least width, frames do not
    frame = f'<body style="margin:0"><iframe src="page.html" style="border:0;width:{width}px;height:3000px"></iframe>'
    reader = "<script>onload = () => document.title = document.querySelector('iframe').contentDocument.title</script>"
    (tmp_path / "frame.html").write_text(f"<!doctype html>{frame}{reader}</body>", encoding="utf-8")
    dom = _browser(tmp_path, "--dump-dom", "--allow-file-access-from-files")
    found = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert found, dom[:500]
    assert int(found[2]) == width
    assert int(found[1]) <= width
    _browser(tmp_path, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1280,3000")
    pixels = np.array(Image.open(tmp_path / "shot.png").convert("L"))[:, :width]
    assert pixels.std() > 5  # something is drawn


def _browser(folder: Path, *flags: str) -> str:
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = [str(BROWSER), "--headless", "--no-sandbox", *quiet.split(), "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", *flags, (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout
