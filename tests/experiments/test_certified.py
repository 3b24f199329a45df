"""The plot of certified accuracy, and what is proven, on a made-up study."""

from __future__ import annotations

from pathlib import Path

import pytest

from mithridate.experiments import certified
from mithridate.experiments.report import write_report
from mithridate.experiments.table import Table, table
from tests.experiments import synthetic as made


@pytest.fixture(scope="module")
def full() -> Table:
    return table(list(made.backdoor_pairs()))


def test_a_vote_has_a_curve_for_either_way_to_change_rows(full: Table) -> None:
    (curve,) = certified.curves(full.rows)
    assert curve.name.startswith("partition-vote")
    clean = next(row for row in full.rows if row.attack == "no-attack" and row.certificate).certificate
    assert clean is not None
    assert curve.inserted == clean.curve
    assert [point.value for point in curve.replaced] == [point.value for point in curve.inserted][::2]
    assert len(curve.inserted) == 8


def test_the_picture_says_its_numbers(full: Table) -> None:
    found = certified.curves(full.rows)
    wide, narrow = certified.pictures(found, "certified")
    first = found[0].inserted[0].value
    for picture in (wide, narrow):
        assert picture.startswith("<svg")
        assert f"{100 * first:.0f} % against 0" in picture
        assert "rows replaced" in picture
    assert certified.pictures([], "certified") == []


def test_what_is_proven_is_said_once(full: Table) -> None:
    assert certified.guarantees(full.rows) == [
        (next(row.defense for row in full.rows if row.guarantees), made.VOTE),
    ]


def test_the_page_shows_the_curve_and_the_guarantee(tmp_path: Path) -> None:
    page = write_report(made.make_study(tmp_path)).read_text()
    assert "What the votes certify" in page
    assert "an answer with radius r stays the same" in page
    assert "training is bit-exact" in page
