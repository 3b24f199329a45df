"""Study files that raise: the user is told where, in a line."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mithridate.cli import main
from mithridate.experiments.definitions import definition

NUMBERS = itertools.count()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a module and returns the name of its function `trials`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> str:
        name = f"study_that_raises_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text).lstrip())
        return f"{name}:trials"

    return write


RAISING = {
    "in the function": ("def trials():\n    return [1 / 0]", r"\.py, line 2 in trials, raised ZeroDivisionError: divi"),
    "in a helper": (
        "def trials():\n    return help()\n\ndef help():\n    raise KeyError('eps')",
        r"\.py, line 5 in help, raised KeyError: 'eps'",
    ),
    "while it is imported": ("x = 1\ny = undefined", r"\.py, line 2, raised NameError: name 'undefined'"),
    "no Python": ("def trials(:\n    pass", r"\.py, line 1, raised SyntaxError"),
    "it ends the program": ("import sys\nsys.exit('enough')", r"\.py, line 2, raised SystemExit: enough"),
    "something it imports is missing": (
        "import no_such_module",
        r"\.py, line 1, raised ValueError: .*'no_such_module'",
    ),
    "a setting of ours": (
        "from mithridate import Digits\n\ndef trials():\n    return Digits(train=1)",
        r"\.py, line 4 in trials, raised ValueError: train is 1; digits has",
    ),
    "a library": (
        "import json\n\ndef trials():\n    return json.loads('{')",
        r"\.py, line 4 in trials, raised JSONDecodeError",
    ),
}


@pytest.mark.parametrize("case", RAISING)
def test_a_study_that_raises_says_where(case: str, study: Callable[..., str]) -> None:
    text, words = RAISING[case]
    name = study(text)
    with pytest.raises(ValueError, match=f"the study {name} cannot be read: .*{words}") as caught:
        definition(name)
    assert caught.value.__cause__ is not None
    assert "MITHRIDATE_DEBUG=1" in str(caught.value)


def test_a_name_that_is_not_there_is_no_fault_of_the_file(study: Callable[..., str]) -> None:
    name = study("def other(): return []")
    with pytest.raises(ValueError, match="has no 'trials'") as caught:
        definition(name)
    assert "cannot be read" not in str(caught.value)


def test_the_command_line_says_it_without_a_traceback(
    study: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, threads = study("def trials():\n    return [1 / 0]"), torch.get_num_threads()
    arguments = ["study", name, "--out", str(tmp_path / "out"), "--workers", "local"]
    try:
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "line 2 in trials, raised ZeroDivisionError: division by zero" in said.err
        assert said.err.count("\n") == 1
        monkeypatch.setenv("MITHRIDATE_DEBUG", "1")
        with pytest.raises(ValueError, match="cannot be read") as caught:
            main(arguments)
    finally:
        torch.set_num_threads(threads)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not (tmp_path / "out").exists()
