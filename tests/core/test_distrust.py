"""What a stranger's JSON names is not imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mithridate.core.balls import Ball, Linf
from mithridate.core.distrust import distrusting
from mithridate.core.schema import class_of, from_json, resolve
from tests.core import schema_cases
from tests.core.schema_cases import HERE


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder that leaves a file behind when it is imported; gone again after the test."""
    (tmp_path / "evil_module.py").write_text("from pathlib import Path\nPath('trace').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "evil_module"
    sys.modules.pop("evil_module", None)


def test_nothing_is_imported(evil: str) -> None:
    for read in (
        lambda: from_json({"type": f"{evil}:Ball"}, Ball),
        lambda: from_json([{"type": f"{evil}:Ball"}], tuple[Ball, ...]),
        lambda: class_of(Ball, f"{evil}:Ball"),
        lambda: resolve(f"{evil}:Ball"),
    ):
        with distrusting(), pytest.raises(ValueError, match="which runs it"):
            read()
        assert evil not in sys.modules
        assert not Path("trace").exists()
    with pytest.raises(ValueError, match="has no 'Ball'"):
        from_json({"type": f"{evil}:Ball"}, Ball)  # outside, settings are the user's own
    assert Path("trace").exists()


def test_classes_that_are_there_already_may_be_named() -> None:
    with distrusting():
        assert from_json({"type": "linf", "eps": 0.05}, Ball) == Linf(eps=0.05)
        own = f"{HERE}:EveryOther"
        assert from_json({"type": own}, schema_cases.RowRule) == schema_cases.EveryOther()
        with pytest.raises(ValueError, match="must name a subclass of Ball"):
            from_json({"type": "os:system"}, Ball)


def test_functions_are_not_looked_up_at_all() -> None:
    from collections.abc import Callable

    assert from_json({"function": "os:getcwd"}, Callable[[], str])() == str(Path.cwd())  # type: ignore[arg-type]
    with distrusting(), pytest.raises(ValueError, match="which runs it"):
        from_json({"function": "os:getcwd"}, Callable[[], str])  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1e999999999", "-1e999999999", "9" * 5000, "1/" + "9" * 5000, "1E-999999999"])
def test_numbers_of_very_many_digits(text: str) -> None:
    """As exact fractions they would take all memory."""
    with pytest.raises(ValueError, match="eps"):
        from_json({"type": "linf", "eps": text}, Ball)
