"""The report of a made-up study of gradient inversion: complete, safe, offline, well-formed."""

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

from mithridate.experiments import leak_words
from mithridate.experiments.leak_curves import batch_curves, strength_curves
from mithridate.experiments.leak_grids import sheets
from mithridate.experiments.leak_report import collect_leaks, write_leak_report
from mithridate.experiments.leak_table import leak_table
from mithridate.experiments.report import collect, write_report
from tests.experiments import leak_cases as made, synthetic
from tests.experiments.pages import Page


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return made.make_study(tmp_path_factory.mktemp("leaks"), cases=3)


@pytest.fixture(scope="module")
def text(study) -> str:
    path = write_leak_report(study)
    assert path == study / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def rows(study):
    return collect_leaks(study).made.rows


# --- the page --------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched(page, text):
    for tag, name, value in page.links:
        assert value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert not page.all("script")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_names_and_messages_are_escaped(text):
    assert "<b>7" not in text
    assert "&lt;b&gt;7&lt;/b&gt;" in text
    assert "the gradient of &lt;conv&gt; holds NaN" in text


def test_names_in_plots_are_escaped(tmp_path):
    bad = '<img src=x onerror="1">$x_1$&'
    for defenses in ((), *(({"type": bad, "level": level},) for level in (1, 2))):
        for batch in (1, 2):
            settings = made.trial(*defenses, batch=batch, attack={"type": bad})
            made.put(tmp_path, settings, made.result(settings, [20.0] * batch, [1] * batch))
    page = Page(write_leak_report(tmp_path).read_text(encoding="utf-8"))
    assert len(page.all("svg")) == 4
    assert not page.all("img")
    assert bad in page.whole


def test_every_sentence_of_the_table_is_in_it(study, page, rows):
    table = collect_leaks(study).made
    for sentence in (leak_words.headline(rows), *table.verdict(), *table.defenses()):
        assert sentence in page.whole
    assert "mithridate invert --data digits --model convnet --batch 1 4 8" in page.whole
    assert "this message alone: every further round adds to epsilon" in page.whole
    assert "Guessing would find 1 in 1,000" in page.whole


def test_every_number_of_a_row_is_in_the_table(page, rows):
    row = next(row for row in rows if row.loss and row.adaptive)
    assert row.loss is not None
    for value in (row.found.psnr.value, row.control.psnr.value, *row.found.quartiles):
        assert f"{value:.1f}" in page.whole
    for value in (row.gain.psnr.difference.value, -row.loss.psnr.difference.value):
        assert f"{leak_words.signed(value)} dB" in page.whole
    assert f"{row.found.ssim.value:.2f}" in page.whole
    assert len(page.all("tr")) >= 45


def test_failed_and_missing_trials_are_listed(study, page):
    found = collect_leaks(study)
    assert len(found.pairs) == 45 * 3
    assert len(found.problems) == 2
    assert "failed with ValueError: the gradient of <conv> holds NaN" in page.whole
    assert "not finished" in page.whole


def test_it_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("img")
    assert all(image.get("alt") for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col", "colgroup") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 0
    svgs = page.all("svg")
    assert svgs
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in svgs)
    regions = [a for _, a in page.tags if a.get("role") == "region"]
    assert all(r.get("tabindex") == "0" and r.get("aria-labelledby") for r in regions)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    assert len(page.ids) == len(set(page.ids))
    wanted = [value.removeprefix("#") for _, _, value in page.links if value.startswith("#")]
    wanted += [name for _, a in page.tags for name in (a.get("aria-labelledby") or "").split()]
    assert wanted
    assert set(wanted) <= set(page.ids)


def test_lines_of_plots_have_contrast(text):
    def luminance(color: str) -> float:
        parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        )

    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        palette = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        assert len({palette[f"l{n}"] for n in range(6)}) == 6
        for number in range(6):
            ends = sorted(luminance(palette[name]) for name in ("paper", f"l{number}"))
            assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5


def small(folder: Path) -> Path:
    """Two cells of two single images each."""
    pool = made.digits()
    for defenses in ((), (made.SPARSE,)):
        for seed in range(2):
            settings = made.trial(*defenses, seed=seed)
            made.put(folder, settings, *made.measured(settings, pool, 0.3))
    return folder


def test_the_same_study_gives_the_same_file(tmp_path):
    folder = small(tmp_path)
    text = write_leak_report(folder).read_text(encoding="utf-8")
    assert write_leak_report(folder, tmp_path / "deep" / "again.html").read_text(encoding="utf-8") == text


# --- images ----------------------------------------------------------------------------------------------------------


def decoded(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_single_images_go_from_best_to_worst_and_are_the_stored_pixels(tmp_path):
    pool = made.digits()
    stored, psnr = {}, {}
    for seed in range(13):
        settings = made.trial(seed=seed)
        done, images = made.measured(settings, pool, 0.2 + 0.05 * ((7 * seed) % 13))
        made.put(tmp_path, settings, done, images)
        stored[seed], psnr[seed] = images, done["outcome"]["psnr"][0]
    (sheet,), left_out = sheets(collect_leaks(tmp_path).made.rows, tmp_path)
    assert left_out == 0
    (strip,) = sheet.strips
    (group,) = strip.groups
    order = sorted(psnr, key=lambda seed: -psnr[seed])
    assert [pair.psnr for pair in group.pairs] == sorted((pair.psnr for pair in group.pairs), reverse=True)
    assert [pair.says.split(",")[0] for pair in (group.pairs[0], group.pairs[-1])] == ["best", "worst"]
    assert len(group.pairs) == 10
    assert sum("median" in pair.says for pair in group.pairs) == 1
    for pair, seed in ((group.pairs[0], order[0]), (group.pairs[-1], order[-1])):
        assert pair.psnr == psnr[seed]
        assert (decoded(pair.true) == stored[seed]["true"][0, 0]).all()
        assert (decoded(pair.found) == stored[seed]["found"][0, 0]).all()
    assert strip.note == "10 of 13 images."


def test_batches_are_shown_whole(study, rows):
    found, _ = sheets(rows, study)
    by_batch = {sheet.title.rpartition(", ")[2]: sheet.strips[0].groups for sheet in found[:3]}
    assert [len(group.pairs) for group in by_batch["batches of 4"]] == [4, 4]
    assert [group.title.split(" (")[0] for group in by_batch["batches of 4"]] == ["best batch", "worst batch"]
    assert [(group.title.split(" (")[0], len(group.pairs)) for group in by_batch["batches of 8"]] == [
        ("median batch", 8)
    ]
    crowd = next(strip for strip in found[2].strips if strip.row.defense == "larger-batch")
    assert crowd.groups[0].title.endswith("its first 10 images")


def test_images_that_are_missing_or_damaged_are_left_out(tmp_path):
    pool = made.digits()
    for seed in range(3):
        made.put(tmp_path, made.trial(seed=seed), *made.measured(made.trial(seed=seed), pool, 0.3))
    first, second, third = sorted(tmp_path.glob("trials/*/images.safetensors"))
    first.write_bytes(b"broken")
    second.unlink()
    page = Page(write_leak_report(tmp_path).read_text(encoding="utf-8"))
    assert "1 of 1 images. The images of 2 of 3 cases are not stored or cannot be read." in page.whole
    third.unlink()
    assert "<img" not in write_leak_report(tmp_path).read_text(encoding="utf-8")


def test_what_has_no_room_is_said_to_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("mithridate.experiments.leak_grids.ROOM", 1)
    page = Page(write_leak_report(small(tmp_path)).read_text(encoding="utf-8"))
    assert len(page.all("img")) == 4
    assert "The images of 1 more setting are left out" in page.whole


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_against_the_batch_have_a_line_per_defence(rows):
    curves = batch_curves(rows)
    assert [curve.title for curve in curves] == [
        "inverting-gradients (1 of 2)",
        "inverting-gradients (2 of 2)",
        "deep-leakage",
    ]
    names = [key.name for curve in curves[:2] for key in curve.legend]
    assert names.count("no defence") == 2  # in both parts
    assert len(set(names)) == 9
    assert curves[2].legend[0].name == "no defence"
    row = next(row for row in rows if row.attack == "deep-leakage" and row.defense == "none" and row.batch == 4)
    said = f"batches of 4 {leak_words.decibels(row.found.psnr)}, {leak_words.counted(row.found.identified)} picked out"
    assert said in curves[2].pictures[0]
    assert all("var(--l0)" in picture and "#060606" not in picture for curve in curves for picture in curve.pictures)


def test_curves_against_the_strength_begin_without_a_defence(rows):
    first, second = strength_curves(rows)
    assert first.title == "inverting-gradients against clip-and-noise"
    assert [key.name for key in second.legend] == ["single images", "batches of 4", "batches of 8"]
    assert "single images, attacker adapting" in [key.name for key in first.legend]
    heard = re.search(r'aria-label="([^"]+)"', second.pictures[0])
    assert heard is not None
    single = heard[1].partition("batches of 4: ")[0]
    places = [
        single.index(part) for part in ("no defence", "noise 0.01 (epsilon 400)", "noise 0.1", "noise 1 (epsilon 4)")
    ]
    assert places == sorted(places)
    assert "Dotted: to the same attack without a defence." in second.caption


def test_one_batch_size_and_one_strength_need_no_curve():
    pairs = [(made.trial(d), made.result(made.trial(d), [20.0], [1])) for d in (made.noise(0.1), made.SPARSE)]
    rows = leak_table(pairs).rows
    assert batch_curves(rows) == []
    assert strength_curves(rows) == []


def test_strengths_of_which_more_is_weaker_have_no_defence_on_the_right():
    pairs = []
    for given in ((), *(({"type": "quantize", "bits": bits},) for bits in (2, 8))):
        settings = made.trial(*given)
        pairs.append((settings, made.result(settings, [20.0], [1])))
    (curve,) = strength_curves(leak_table(pairs).rows)
    heard = curve.pictures[0].partition("single images: ")[2]
    assert heard.index("bits 2") < heard.index("bits 8") < heard.index("no defence")


# --- what may be missing ---------------------------------------------------------------------------------------------


def test_nothing_finished_is_reported_too(tmp_path):
    made.put(tmp_path, made.trial(), None)
    text = write_leak_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "No attack has finished, so nothing is shown." in text


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "outcome": {"psnr": []}, "control": {}}'],
)
def test_a_damaged_result_is_listed_and_the_others_stay(tmp_path, content):
    settings = made.trial()
    made.put(tmp_path, settings, made.result(settings, [20.0], [1]))
    bad = made.put(tmp_path, made.trial(seed=1), None)
    (bad / "result.json").write_text(content)
    found = collect_leaks(tmp_path)
    assert len(found.pairs) == 1
    assert any(bad.name in problem for problem in found.problems)
    Page(write_leak_report(tmp_path).read_text(encoding="utf-8"))


def test_without_controls_of_another_defence_a_single_trial_has_a_page(tmp_path):
    settings = made.trial(made.noise(0.1))
    made.put(tmp_path, settings, made.result(settings, [20.0], [1]))
    whole = Page(write_leak_report(tmp_path).read_text(encoding="utf-8")).whole
    assert "no undefended run beside single images (100 % picked out)" in whole
    assert "The command was not recorded" in whole
    assert "With clip-and-noise, 1 of 1 single images is picked out" in whole


def test_a_folder_without_trials_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no trials/ folder"):
        write_leak_report(tmp_path)


def test_each_report_leaves_out_what_belongs_to_the_other(tmp_path):
    leak, poison = made.trial(), synthetic.trial("badnets", synthetic.BACKDOOR)
    made.put(tmp_path, leak, made.result(leak, [20.0], [1]))
    place = tmp_path / "trials" / "poison"
    place.mkdir()
    (place / "trial.json").write_text(json.dumps(poison))
    (place / "result.json").write_text(json.dumps(synthetic.result(poison, [[1]], [[1.0]], [0.9])))
    leaks, poisons = collect_leaks(tmp_path), collect(tmp_path)
    assert [trial for trial, _ in leaks.pairs] == [leak]
    assert [trial for trial, _ in poisons.pairs] == [poison]
    assert any("it has its own report" in line for line in leaks.problems)
    assert any("it has its own report" in line for line in poisons.problems)
    Page(write_leak_report(tmp_path, tmp_path / "a.html").read_text(encoding="utf-8"))
    Page(write_report(tmp_path, tmp_path / "b.html").read_text(encoding="utf-8"))
