"""What was removed and what is certified, from results written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mithridate.experiments.cells import cells
from mithridate.experiments.proofs import certificate, detection
from tests.experiments import synthetic as made
from tests.experiments.synthetic import BACKDOOR, PARTS, SPECTRAL


def cell_of(attack: str, *changes: dict[str, Any], defense: dict[str, Any] = SPECTRAL) -> Any:
    """A cell of one trial for each of these changes of its result."""
    pairs = []
    for seed, change in enumerate(changes):
        trial = made.trial(attack, BACKDOOR, defense, seed=seed)
        victims = len((change.get("defense") or {}).get("removed") or [0])
        pairs.append((trial, made.result(trial, [[0]] * victims, [[-1.0]] * victims, [0.5] * victims, **change)))
    (cell,) = cells(pairs)
    return cell


def removed(rows: list[int], poisons: list[int]) -> dict[str, Any]:
    return {"defense": {"removed": rows, "removed_poisons": poisons}}


def test_shares_of_what_was_removed_by_hand() -> None:
    """5,000 rows, 100 poisons; two victims of one poison, one of another."""
    found = detection(cell_of("badnets", removed([200, 100], [80, 60]), removed([300], [100])))
    assert found is not None
    assert found.removed == 200
    assert found.recall is not None
    assert (found.recall.successes, found.recall.n) == (240, 300)
    assert 2 <= found.recall.n_eff < 10  # poisons are worth little more than the two cases
    assert found.precision is not None
    assert (found.precision.successes, found.precision.n) == (240, 600)
    assert found.false_alarms.n == 2
    assert found.false_alarms.value == pytest.approx(((120 + 40) / 2 + 200) / 2 / 4900)


def test_victims_without_poison_are_shared_by_all_trials_and_count_once() -> None:
    found = detection(cell_of("no-attack", *[removed([150, 170, 160], [0, 0, 0])] * 4))
    assert found is not None
    assert found.recall is None
    assert found.precision is None
    assert found.false_alarms.n == 3
    assert found.false_alarms.value == pytest.approx(160 / 5000)
    assert found.false_alarms.low is not None
    assert 0.02 < found.false_alarms.low < 160 / 5000


def test_a_filter_that_drops_nothing_has_no_precision() -> None:
    found = detection(cell_of("badnets", removed([0], [0])))
    assert found is not None
    assert found.recall is not None
    assert found.recall.share == 0
    assert found.precision is None
    assert found.false_alarms.value == 0


def test_nothing_is_detected_where_nothing_is_ever_left_out() -> None:
    assert detection(cell_of("badnets", {})) is None
    assert certificate(cell_of("badnets", {})) is None


def outcome(accuracy: list[float], certified: Any) -> dict[str, Any]:
    radius = [[1] for _ in certified]
    entries = {"success": [[0]] * len(accuracy), "margin": [[0.0]] * len(accuracy), "radius": radius}
    return {"outcome": entries | {"accuracy": accuracy, "certified": certified}}


def test_certified_accuracy_is_averaged_over_independent_votes() -> None:
    """Two poisons, the second with two victims: one mean per poison. Every second radius is one replaced row."""
    cell = cell_of(
        "badnets",
        outcome([0.8], [[0.8, 0.6, 0.4]]),  # no larger radius was met there
        outcome([0.9, 0.7], [[0.9, 0.7, 0.5, 0.1], [0.7, 0.5, 0.3, 0.1]]),
        defense=PARTS,
    )
    found = certificate(cell)
    assert found is not None
    assert [point.value for point in found.curve] == pytest.approx([0.8, 0.6, 0.4, 0.05])
    assert [point.n for point in found.curve] == [2] * 4
    assert [point.value for point in found.replaced()] == pytest.approx([0.8, 0.4])
    assert found.covers == 0


def test_shared_clean_votes_are_counted_once() -> None:
    points = [[0.9, 0.6], [0.7, 0.4]]
    found = certificate(cell_of("no-attack", *[outcome([0.9, 0.7], points)] * 3, defense=PARTS))
    assert found is not None
    assert [(point.value, point.n) for point in found.curve] == [(pytest.approx(0.8), 2), (pytest.approx(0.5), 2)]


def test_results_from_before_the_curve_still_have_a_radius() -> None:
    change = outcome([0.8], [[0.8, 0.6]])
    del change["outcome"]["certified"]
    found = certificate(cell_of("badnets", change, defense=PARTS))
    assert found is not None
    assert found.median == 1
    assert found.curve == ()
