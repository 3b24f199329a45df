"""Every reader of every format over hostile files: refused, with the name of the file, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mithridate import cli
from mithridate.core.schema import to_json
from mithridate.core.sources import Digits
from mithridate.poisoning.exchange.artefact import Artefact
from mithridate.poisoning.exchange.parcel import Format, Parcel, Reference
from mithridate.poisoning.poison import Poison
from mithridate.poisoning.threat import ThreatModel
from tests.core import hostile_texts
from tests.core.hostile_texts import trapped
from tests.core.watching import watched
from tests.poisoning.exchange.exchange_cases import equal
from tests.poisoning.exchange.hostile_cases import FORMS, corpus_for, data, fitted, kinds, written

every_format = pytest.mark.parametrize("name", FORMS)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with traps in it, which is the current one too, as somebody's download would be."""
    (tmp_path / "evil_module.py").write_text("from pathlib import Path\nPath('canary').touch()\nclass Trigger: pass\n")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def outcome(form: Format, path: Path, canary: Path) -> str | Parcel:
    """What a reader says, or what it returns; whatever it does besides fails the test."""
    with watched() as deeds:
        try:
            found: str | Parcel = form.read(path, data())
        except (ValueError, FileNotFoundError) as error:
            found = str(error)
    assert not deeds
    assert not canary.exists()
    assert "evil_module" not in sys.modules
    assert "antigravity" not in sys.modules
    return found


@every_format
def test_hostile_contents(home: Path, name: str) -> None:
    form, canary, refused = FORMS[name], home / "canary", 0
    path = written(form, home / "home")
    before = form.read(path, data())
    for file in kinds(path):
        corpus, kept = corpus_for(file, canary), {one: one.read_bytes() for one in file.parent.glob("manifest.json")}
        kept[file] = file.read_bytes()
        if file.suffix in (".jsonl", ".csv", ".json"):
            trapped(file.parent, home / "evil_module.py")
        for what, content in corpus.items():
            fitted(file, content)
            found = outcome(form, path, canary)
            where = f"{file.name}: {what}"
            if isinstance(found, str):
                assert file.name in found or str(path) in found, where
                assert len(found) < 2000, where
                refused += 1
            else:  # a file that is not looked at
                assert equal(before, found, type(form).carries), where
        for one, content in kept.items():
            one.write_bytes(content)
    assert refused > 10


def replaced(file: Path, how: str) -> None:
    """Puts something that is no ordinary file in place of a file."""
    file.unlink()
    if how == "pipe":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "huge":
        with file.open("wb") as sparse:
            sparse.truncate(2**37)
    elif how != "missing":
        places = {"device": "/dev/zero", "terminal": "/dev/stdin", "circle": file, "dangling": file.parent / "none"}
        file.symlink_to(places[how])


@every_format
@pytest.mark.parametrize("how", ["pipe", "folder", "huge", "device", "terminal", "circle", "dangling", "missing"])
def test_what_is_no_file(home: Path, name: str, how: str) -> None:
    form, refused = FORMS[name], 0
    path = written(form, home / "home")
    before, names = form.read(path, data()), [file.relative_to(home / "home") for file in kinds(path)]
    for number, part in enumerate(names):
        (home / str(number)).mkdir()
        path = written(form, home / str(number))
        file = home / str(number) / part
        replaced(file, how)
        found = outcome(form, path, home / "canary")
        if isinstance(found, str):
            assert file.name in found or str(path) in found
            refused += 1
        elif file.suffix != ".png":  # who lists a folder cannot know what was in it
            assert equal(before, found, type(form).carries)
    assert refused or how in ("folder", "missing")


@every_format
def test_links_out_of_the_folder(home: Path, name: str) -> None:
    """A download that has links in it may aim at anything on this disk; images are named by tables or by listing."""
    form = FORMS[name]
    path = written(form, home / "home")
    before = form.read(path, data())
    for file in [one for one in kinds(path) if one.suffix in (".png", ".parquet")]:
        file.rename(home / file.name)
        file.symlink_to(home / file.name)
        found = outcome(form, path, home / "canary")
        assert "out of its folder" in found if isinstance(found, str) else equal(before, found, type(form).carries)
        assert isinstance(found, str) or "test" in str(file.relative_to(path))
        file.unlink()
        (home / file.name).rename(file)


def test_hostile_poisons_loaded_without_data(home: Path) -> None:
    path = written(FORMS["artefact"], home / "home")
    manifest = (path / "manifest.json").read_bytes()
    files = kinds(path)
    trapped(path, home / "evil_module.py")
    for file in files:
        kept = file.read_bytes()
        for what, content in corpus_for(file, home / "canary").items():
            fitted(file, content)
            with watched() as deeds, contextlib.suppress(ValueError):
                Poison.load(path)
            assert not deeds, what
            assert "evil_module" not in sys.modules
        file.write_bytes(kept)
        (path / "manifest.json").write_bytes(manifest)


def test_the_command_line_over_hostile_manifests(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = Reference(*Digits().load())
    rows = sets.train.ids[:3]
    parcel = Parcel(sets.train.pixels(rows), rows=rows, notes={"work": {"threat": to_json(ThreatModel())}})
    Artefact().write(parcel, home / "home" / "poison", sets)
    for command in (["verify"], ["export", str(home / "first"), "--to", "npz"]):  # imports what every command needs
        assert cli.main([command[0], str(home / "home" / "poison"), *command[1:], "--data", "digits"]) == 0
    trapped(home / "home" / "poison", home / "evil_module.py")
    file = home / "home" / "poison" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["seal"]
    corpus = hostile_texts.manifests(manifest, file.parent)
    balls = [1, [], {"type": "evil_module:Ball"}, {"type": "os:system"}, {"type": "linf", "eps": "1e999999999"}]
    balls += [{"type": "linf", "eps": []}, "[" * 9999, "linf+" * 999]
    for number, threat in enumerate([1, [], *({"ball": ball} for ball in balls)]):
        corpus[f"threat {number}"] = json.dumps(manifest | {"work": {"threat": threat}}).encode()
    for what, content in corpus.items():
        file.write_bytes(content)
        for command in (["verify", str(file.parent)], ["export", str(file.parent), str(home / "out"), "--to", "npz"]):
            shutil.rmtree(home / "out", ignore_errors=True)
            (home / "out").unlink(missing_ok=True)
            with watched() as deeds:
                code = cli.main([*command, "--data", "digits"])
            said = capsys.readouterr()
            assert code in (0, 1, 2), what
            assert "Traceback" not in said.err, what
            assert code != 2 or len(said.err.strip().splitlines()) == 1, what
            asked = (str(home / "out"), f"os.mkdir ('{home}'")  # what export writes
            assert [deed for deed in deeds if not any(one in deed for one in asked)] == [], what
            assert "evil_module" not in sys.modules
            assert not (home / "canary").exists()
