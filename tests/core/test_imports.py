"""Objects by name: what is found, and what is said where nothing is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mithridate.core import schema
from mithridate.core.imports import resolve


def test_an_object_is_found_by_its_dotted_name() -> None:
    assert resolve("pathlib:Path.home") == Path.home
    assert schema.resolve is resolve


def test_the_current_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_here.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert resolve("found_here:answer") == 42
    monkeypatch.delitem(sys.modules, "found_here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pathlib", "write package.module:name"),
        (":Path", "write package.module:name"),
        ("nowhere.at_all:f", "no module 'nowhere'; is it installed, or in the current folder"),
        ("pathlib:Pth", "pathlib has no 'Pth'; did you mean Path"),
        ("train.py:main", "names a file; name the module in it, from the current folder: train:main"),
        ("my_pkg/train.py:main", "from the current folder: my_pkg.train:main"),
    ],
)
def test_what_cannot_be_found_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        resolve(text)
