"""Optional packages."""

from __future__ import annotations

import sys
import types

import pytest

from mithridate.core.extras import MissingExtra, extra


def test_a_package_that_is_there_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("some_library")
    monkeypatch.setitem(sys.modules, "some_library", fake)
    assert extra("some_library", "some", "a test") is fake


def test_a_package_that_breaks_on_import_is_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"a test needs broken_library.*operator.*pip install 'mithridate\[some\]'"):
        extra("broken_library", "some", "a test")
    assert issubclass(MissingExtra, ImportError)
