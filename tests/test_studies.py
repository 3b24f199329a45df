"""Studies of papers: three sizes each, valid and different trials; tables of docs are what is stored; verdicts."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import mithridate as mi
from mithridate.core.schema import from_json, to_json
from mithridate.experiments.statistics import Mean, Rate
from mithridate.experiments.study import load_results
from mithridate.experiments.words import counted
from mithridate.lifting.discretisations import Pixels
from studies import (
    cross_effects,
    defence_guide,
    graph_discretizations,
    sublabels,
    tables,
    truth_statements,
    verdicts,
    witchcraft,
)

PAPERS = (
    "poison_frogs",
    "polytopes",
    "metapoison",
    "witches_brew",
    "adversarial_poisoning",
    "strong_augmentation",
    "dp_instahide",
    "secure_release",
    "inverting_gradients",
    "witchcraft",
    "truth_or_backpropaganda",
    "graph_discretizations",
    "poisoning_benchmark",
)
SIZES = ("small", "medium", "paper")
RESULTS = Path(verdicts.RESULTS)
STORED = pytest.mark.skipif(not RESULTS.is_dir(), reason="stored results are in the repository, not in an sdist")


def module(name: str) -> ModuleType:
    return importlib.import_module(f"studies.{name}")


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_has_three_sizes_of_different_trials_that_survive_json(name: str) -> None:
    paper = module(name)
    for size in SIZES:
        trials = getattr(paper, size)()
        assert trials
        kinds = {type(trial) for trial in trials}
        assert all(issubclass(kind, (mi.Trial, mi.LeakTrial, mi.Measurement)) for kind in kinds)
        assert len(set(trials)) == len(trials)
        step = max(1, len(trials) // 4)
        assert [from_json(json.loads(json.dumps(to_json(one))), type(one)) for one in trials[::step]] == trials[::step]
        assert getattr(paper, size).__doc__
    assert f"studies.{name}:small" in str(paper.__doc__)
    assert "eference" in str(paper.__doc__)


@pytest.mark.parametrize("name", PAPERS)
def test_small_is_smaller_than_paper(name: str) -> None:
    """In what is trained: other models, other data, or fewer of both."""
    small, paper = (getattr(module(name), size)() for size in ("small", "paper"))
    assert set(small) != set(paper)
    assert not set(paper) < set(small)


@STORED
def test_the_table_of_the_results_page_is_what_is_stored() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.written(page) == page, "run python -m studies.tables"


@STORED
def test_every_paper_is_in_the_table() -> None:
    named = {line.paper for paper in tables.PAPERS for line in paper()}
    assert len(named) >= 13
    lines = [line for paper in tables.PAPERS for line in paper()]
    assert {line.verdict for line in lines} <= {"agrees", "differs", "undecided"}
    for line in lines:
        module_name, size = line.command.removeprefix("studies.").split(":")
        assert callable(getattr(module(module_name), size)), line.command


@STORED
def test_the_tables_of_cross_effects_are_what_is_stored() -> None:
    page = cross_effects.PAGE.read_text(encoding="utf-8")
    assert cross_effects.written(page) == page, "run python -m studies.cross_effects"


@STORED
def test_the_table_of_defences_is_what_is_stored() -> None:
    for path, table in ((defence_guide.PAGE, defence_guide.lines()), (defence_guide.README, defence_guide.extract())):
        page = path.read_text(encoding="utf-8")
        assert defence_guide.written(page, table) == page, "run python -m studies.defence_guide"


@STORED
def test_all_defences_of_a_column_are_compared_with_its_first_row() -> None:
    found = defence_guide.cells()
    for (_, threat, _), row in found.items():
        if "undefended" in row.versus:
            assert counted(row.versus["undefended"].success) == counted(found["none", threat, False].success)


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_number_agrees_where_its_interval_holds_it() -> None:
    rate = Rate(3, 20, 20.0, 0.05, 0.36)
    assert verdicts.holds(rate, 0.05) == verdicts.holds(rate, 0.36) == "agrees"
    assert verdicts.holds(rate, 0.04) == verdicts.holds(rate, 0.9) == "differs"


@STORED
def test_a_row_that_is_not_there_or_not_alone_is_no_number() -> None:
    assert verdicts.find("no-such-study", "witches-brew") is None
    assert list(verdicts.attack_line("a", "b", "c", "d", None)) == []
    with pytest.raises(LookupError, match="0 rows of backdoors-cleansed fit nothing"):
        verdicts.find("backdoors-cleansed", "nothing")


@pytest.mark.parametrize(
    ("low", "high", "sign", "verdict"),
    [
        (0.01, 0.03, 1, "disagrees"),
        (-0.02, 0.005, 1, "agrees"),
        (-0.02, 0.02, 1, "undecided"),
        (-0.03, -0.01, -1, "disagrees"),
        (-0.005, 0.02, -1, "agrees"),
        (-0.02, 0.02, -1, "undecided"),
        (None, None, 1, "undecided"),
    ],
)
def test_nothing_happens_only_where_little_is_left_to_happen(
    low: float | None, high: float | None, sign: int, verdict: str
) -> None:
    assert truth_statements.none_shown(Mean(0.0, low, high, 10), sign) == verdict


@STORED
def test_stored_results_name_no_place_on_the_machine_that_made_them() -> None:
    stored = [*RESULTS.rglob("*.json")]
    assert len(stored) > 1000
    assert not [str(file) for file in stored if re.search(r'"(/|~|[A-Z]:\\)', file.read_text())][:5]


@STORED
def test_witchcraft_duels_are_read_from_what_is_stored() -> None:
    found = list(witchcraft.duels(RESULTS / "witchcraft-digits"))
    assert [(one.kind, one.restarts) for one in found] == [("plain", 1), ("plain", 4), ("robust", 1), ("robust", 4)]
    for one in found:
        assert one.pgd.standing.shape == one.witchcraft.standing.shape == (5, 500)
        assert one.test.difference.value == pytest.approx(one.pgd.standing.mean() - one.witchcraft.standing.mean())
    said = list(witchcraft.compare(RESULTS / "witchcraft-judged"))
    assert any("AutoAttack" in line for line in said)


@STORED
def test_superpixels_are_compared_with_the_pixels_of_their_own_scene() -> None:
    rows = graph_discretizations.compare(RESULTS / "graph-discretizations-small")
    pixels = {row.scene: row for row in rows if row.on == "pixels"}
    assert len(pixels) == 7
    for row in rows:
        base = pixels[row.scene].found
        assert row.energy == pytest.approx(row.found["energy"] / base["energy"] - 1)
        assert (row.times == row.memory == 1) == (row.on == "pixels") or row.on != "pixels"
    assert len(list(graph_discretizations.written(rows))) == len(rows) + 2


@STORED
def test_labels_between_the_ends_of_intervals_are_worth_their_numbers() -> None:
    (found,) = sublabels.worth("small", sublabels.noisy(24), Pixels(), (16,))
    assert found.intervals == 2
    assert abs(found.between) < 0.01
    assert found.coarse > 0.5


@STORED
def test_statements_about_truth_are_read_from_what_is_stored() -> None:
    stored = RESULTS / "truth-digits"
    found = list(truth_statements.statements(stored))
    assert {one.verdict for one in found} <= {"agrees", "disagrees", "undecided"}
    assert len(found) >= 10
    kinds = {trial["type"].rpartition(":")[2] for trial, _ in load_results(stored)}
    assert kinds == set(truth_statements.JUDGES)
