"""The report of a made-up study: complete, safe, offline, well-formed. A browser looks at it in test_browser.py."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mithridate.experiments.report import collect, write_report
from mithridate.experiments.table import table
from tests.experiments import grids, synthetic as made
from tests.experiments.pages import Page


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return made.make_study(tmp_path_factory.mktemp("study"), cases=9)  # 0.5 ** 9 passes as one of seven comparisons


@pytest.fixture(scope="module")
def text(study) -> str:
    path = write_report(study)
    assert path == study / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_nothing_is_fetched(page, text):
    for tag, name, value in page.links:
        assert value.startswith(("data:", "#")), (tag, name, value)
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
    whole = page.whole
    made_table = table(collect(study).pairs)
    for sentence in (*made_table.verdict(), *made_table.defenses()):
        assert sentence in whole
    assert "4 of 7 attack settings are shown to beat the control." in whole
    assert "mithridate audit --data data/cifar10 --preset small" in whole
    assert "The attacker may replace up to 2 % of the training images (here 100 of 5,000)" in whole


def test_failed_and_missing_trials_are_listed(study, text):
    found = collect(study)
    assert len(found.pairs) == len(made.pairs(cases=9))
    assert len(found.problems) == 2
    assert "failed with ValueError: loss is &lt;nan&gt;" in text
    assert "not finished" in text


def test_it_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col", "colgroup") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    svgs = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert svgs
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in svgs)
    assert any("witches-brew 45 % (" in str(s["aria-label"]) and "9 of 20) against random" in str(s) for s in svgs)
    regions = [a for _, a in page.tags if a.get("role") == "region"]
    assert all(r.get("tabindex") == "0" and (r.get("aria-label") or r.get("aria-labelledby")) for r in regions)


def test_headings_go_down_one_step_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_landmarks_and_a_way_past_the_navigation(page):
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert page.all("nav")[0]["aria-label"]
    assert page.all("a")[0] == {"class": "skip", "href": "#content"}
    assert page.all("main")[0]["id"] == "content"


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    ids = page.ids
    assert len(ids) == len(set(ids))
    wanted = [value.removeprefix("#") for _, _, value in page.links if value.startswith("#")]
    wanted += [name for _, a in page.tags for name in (a.get("aria-labelledby") or "").split()]
    assert wanted
    assert set(wanted) <= set(ids)


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_in_light_and_dark_and_print(text):
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    assert len(palettes) == 3
    names = ("ink", "faint", "attack", "defense", "shown", "margins", "open")
    pairs = [("paper", name) for name in names] + [("panel", "ink")]
    pairs += [(f"s{i}", f"t{i}") for i in range(6)] + [(f"c{i}", f"u{i}") for i in range(4)]  # boxes of a heat map
    for palette in palettes:
        for back, front in pairs:
            bright, dim = sorted((_luminance(palette[back]), _luminance(palette[front])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (back, front)


def test_colours_of_success_change_in_one_direction_for_eyes_that_see_no_hue(text):
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        palette = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        light = [_luminance(palette[f"s{i}"]) for i in range(6)]
        assert light in (sorted(light), sorted(light, reverse=True))
        assert len(set(light)) == 6


def test_pixels_are_those_of_the_poison(page):
    base = made.digits(13).numpy()
    clean = next(i["src"] for i in page.all("img") if i["alt"] == "Clean training image 0")
    assert clean is not None
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(clean.partition(",")[2]))))
    assert (pixels == base[0, 0]).all()
    moved = [i["alt"] for i in page.all("img") if str(i["alt"]).startswith("Poisoned")]
    assert len(moved) == 3 * 8  # three attacks, eight of their twelve poisons each
    assert "Poisoned training image 0, Linf 16/255" in str(moved[0])


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
    assert "No control beside witches-brew." in text


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


# --- a large one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    folder = grids.write(tmp_path_factory.mktemp("large"), grids.grid_pairs(targets=6), poisons=6)
    assert len(list(folder.glob("trials/*"))) > 500
    return write_report(folder).read_text(encoding="utf-8")


def test_five_hundred_trials_stay_below_six_megabytes(large):
    assert len(large.encode()) < 6e6


def test_a_large_report_leads_with_one_brief_per_attack_and_the_map(large):
    page = Page(large)
    first = (
        large.index('id="verdicts"'),
        large.index('id="map"'),
        large.index('id="numbers"'),
        large.index('id="trials"'),
    )
    assert list(first) == sorted(first)
    assert "Each of the 41 settings in a sentence" in page.whole
    assert page.whole.count("Adapting to the defence:") == 3
    boxes = [a for a in page.all("a") if str(a.get("class", "")).startswith("box ")]
    assert len(boxes) == 41
    assert large.count("not run</div>") == len(grids.UNRUN)
    assert len(page.all("details")) >= len({box["href"] for box in boxes})
