"""Progress bars: on a terminal only, the outermost only, and never in the way of the items."""

from __future__ import annotations

import io
import sys

import pytest

from mithridate.core.progress import quiet, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Puts a terminal in the place of stderr; called by the test itself: pytest sets its own after fixtures."""
    fake = Terminal()
    monkeypatch.setattr(sys, "stderr", fake)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return fake


def test_nothing_is_written_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_label_and_the_caller_sees_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    assert list(track(range(3), "crafting")) == [0, 1, 2]
    assert "crafting" in terminal.getvalue()


def test_only_the_outermost_loop_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    pairs = [(i, j) for i in track(range(2), "outer", total=2) for j in track(range(2), "inner")]
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()


def test_the_next_loop_shows_its_bar_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    list(track(range(1), "first"))
    list(track(range(1), "second"))
    assert "second" in terminal.getvalue()


def test_a_loop_that_is_left_early_frees_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    loop = track(range(9), "first")
    next(loop)
    loop.close()  # type: ignore[attr-defined]
    list(track(range(1), "second"))
    assert "second" in terminal.getvalue()


def test_quiet_switches_bars_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    with quiet():
        assert list(track(range(2), "hidden")) == [0, 1]
    assert terminal.getvalue() == ""
    list(track(range(2), "shown"))
    assert "shown" in terminal.getvalue()
