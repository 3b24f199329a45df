"""Conditions: read as typed, refused where they cannot mean anything, judged without ever passing in silence."""

from __future__ import annotations

import pytest

from mithridate.experiments.entries import MEASURES, entries
from mithridate.experiments.gates import check_places, conditions, judge
from mithridate.experiments.leak_table import leak_table
from mithridate.experiments.table import table
from tests.experiments import leak_cases, synthetic as made
from tests.experiments.synthetic import BACKDOOR, MIXUP, TARGETED, hits, result, trial

HALF = [1, 0] * 10
NOISE = {"type": "noise", "std": 0.1}


@pytest.fixture(scope="module")
def rows():
    """witches-brew: 10 of 20 bare, 2 of 20 with mixup, 4 of 20 adapting to it, 0 of 20 with two defences; controls."""
    pairs = [
        *hits("witches-brew", HALF),
        *hits("witches-brew", [1, 1, *[0] * 18], MIXUP),
        *hits("witches-brew", [1] * 4 + [0] * 16, MIXUP, adaptive=True),
        *hits("witches-brew", [0] * 20, MIXUP, NOISE),
        *hits("poison-frogs", [0] * 20),
        *hits("random-noise", [1] * 20),
        *hits("no-attack", [1] * 20, MIXUP),
    ]
    return entries(table(pairs))


def broken(text: str, rows, kind: str = "poison") -> list[str | None]:
    """Names of the rows that break a condition."""
    return [breach.entry.name if breach.entry else None for breach in judge(conditions([text], kind), rows)]


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("success>0.2", ["witches-brew"]),
        ("success >= 20%", ["witches-brew", "witches-brew vs mixup, adapting"]),
        ("success>=1/5", ["witches-brew", "witches-brew vs mixup, adapting"]),
        ("success.low>0.2", ["witches-brew"]),
        ("success.low>0.4", []),
        ("success.high>0.35", ["witches-brew", "witches-brew vs mixup, adapting"]),
        ("vs mixup: success>0.05", ["witches-brew vs mixup", "witches-brew vs mixup, adapting"]),
        ("vs none: success>0.05", ["witches-brew"]),
        ("vs mixup + noise: success>0.05", []),
        ("poison-frogs: success<0.05", ["poison-frogs"]),
        ("witches-brew vs mixup+noise: success.high<0.2", ["witches-brew vs mixup + noise"]),
    ],
)
def test_rows_of_attacks_are_judged_and_controls_are_not(text: str, names: list[str], rows) -> None:
    assert broken(text, rows) == names


def test_a_breach_says_which_condition_what_was_measured_and_how_sure_it_is(rows) -> None:
    (breach,) = judge(conditions(["success>0.2"], "poison"), rows)
    assert str(breach) == "success>0.2 holds: witches-brew: success 50 % (29 to 71 %; 10 of 20)"
    assert breach.value == 0.5
    assert breach.measured


def test_each_of_several_conditions_is_judged(rows) -> None:
    found = judge(conditions(["success>0.9", "success>0.4", "accuracy>0.95", "accuracy<0.895"], "poison"), rows)
    assert [breach.condition.text for breach in found] == ["success>0.4", "accuracy<0.895"]
    assert found[1].entry is not None
    assert found[1].entry.name == "witches-brew vs mixup + noise"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("badnets: success>0.2", "no such row; there are: "),
        ("vs cutout: success<0.2", "no such row; there are: "),
        ("random-noise: success>0.2", "no such row; there are: "),  # a control is never judged
        ("recall<0.5", "recall was measured in none of 5 rows"),
        ("highest<0.5", "highest was measured in none of 5 rows"),
    ],
)
def test_a_condition_that_nothing_can_be_judged_by_is_not_green(text: str, why: str, rows) -> None:
    (breach,) = judge(conditions([text], "poison"), rows)
    assert breach.entry is None
    assert not breach.measured
    assert str(breach).startswith(f"{text} cannot be judged: {why}")


def test_nothing_finished_is_not_green() -> None:
    only_controls = entries(table(hits("no-attack", [0, 0])))
    for rows in ([], only_controls):
        (breach,) = judge(conditions(["success>0.2"], "poison"), rows)
        assert str(breach) == "success>0.2 cannot be judged: no attack has finished"


def test_a_row_without_an_outcome_is_not_green_beside_others_that_are() -> None:
    empty = trial("poison-frogs", TARGETED)
    rows = entries(table([*hits("witches-brew", [0, 0]), (empty, result(empty, [[]], [[]], [0.9]))]))
    (breach,) = judge(conditions(["success>0.2"], "poison"), rows)
    assert str(breach) == "success>0.2 cannot be judged: poison-frogs: success was not measured"
    assert judge(conditions(["accuracy<0.5"], "poison"), rows) == []


def test_an_interval_that_a_single_value_does_not_have_is_not_green() -> None:
    rows = entries(table(hits("witches-brew", [0])))
    (breach,) = judge(conditions(["accuracy.low<0.1"], "poison"), rows)
    assert str(breach) == (
        "accuracy.low<0.1 cannot be judged: witches-brew: accuracy 90.0 % (a single value) has no interval"
    )
    assert judge(conditions(["accuracy<0.1"], "poison"), rows) == []


def test_a_measure_that_some_rows_lack_by_nature_is_judged_where_it_is() -> None:
    rows = entries(table(made.pairs()))
    assert broken("recall>0.7", rows) == ["badnets vs spectral-signatures, from scratch"]
    assert broken("recall>0.9", rows) == []


def test_settings_of_an_attack_are_named_as_the_table_names_them() -> None:
    def cell(clean: bool, hit: int):
        for seed in range(3):
            settings = trial("badnets", BACKDOOR, seed=seed)
            settings["attack"] |= {"clean_label": clean}
            yield settings, result(settings, [[hit] * 4], [[0.0] * 4], [0.9])

    rows = entries(table([*cell(True, 0), *cell(False, 1)]))
    assert broken("badnets (clean_label): success<0.5", rows) == ["badnets (clean_label)"]
    assert len(broken("badnets: success>=0", rows)) == 2


def test_leaks_are_judged_by_what_they_measure() -> None:
    rows = entries(leak_table([(settings, done) for settings, done, _ in leak_cases.realistic(3)]))
    judged = broken("inverting-gradients vs none: identified>0.5", rows, "leak")
    assert judged[0] == "inverting-gradients, single images"
    assert broken("vs clip-and-noise: epsilon>300", rows, "leak") != []
    assert all(name and "(noise=0.01)" in name for name in broken("vs clip-and-noise: epsilon>300", rows, "leak"))
    assert broken("psnr>99", rows, "leak") == []


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MEASURES)
def test_every_measure_can_be_asked_for(kind: str) -> None:
    for name, measure in MEASURES[kind].items():
        ends = ("", ".low", ".high") if measure.interval else ("",)
        for condition in conditions([f"{name}{end}>0.5" for end in ends], kind):
            assert condition.name == name
            assert condition.holds(0.6)
            assert not condition.holds(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("success", "is no condition; write it in quotes"),  # what a shell leaves of success>0.2 without them
        ("success>", "is no condition"),
        ("success=0.2", "is no condition"),
        ("success==0.2", "is no condition"),
        ("success>0.2 and p<1", "is no condition"),
        ("0.2<success", "is no condition"),
        ("", "is no condition"),
        ("succes>0.2", "nothing measured is called 'succes'; did you mean success?"),
        ("psnr>20", "nothing measured is called 'psnr'"),
        ("success.lo>0.2", "an interval has no end 'lo'; did you mean low?"),
        ("p.low<0.1", "p has no interval; write p<0.1"),
        ("success>two", "'two' is not a number"),
        ("success>nan", "'nan' is not a number"),
        ("success>1/0", "'1/0' is not a number"),
        ("success>1e999", "says nothing"),
        ("success>20", "from 0 to 1; write 20% or 0.2"),
        ("success>1", "says nothing, since success is the share of outcomes that the attacker wanted, from 0 to 1"),
        ("success>100%", "says nothing"),
        ("accuracy<0", "says nothing"),
        ("success>-1", "says nothing"),
        (
            "margin>5%",
            "margin is the score of the intended class minus the best other, in logits; write a plain number",
        ),
        (": success>0.2", "names neither attack nor defence"),
        ("vs: success>0.2", "names neither attack nor defence"),
        ("badnets vs : success>0.2", "names neither attack nor defence"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        conditions([text], "poison")
    assert message in str(refused.value)
    assert repr(text) in str(refused.value)


def test_a_huge_exponent_costs_nothing() -> None:
    with pytest.raises(ValueError, match="says nothing"):
        conditions(["success>1e999999999"], "poison")


def test_conditions_about_what_is_not_run_are_found_before_anything_is() -> None:
    found = conditions(["badnets (clean_label) vs mixup+noise: success>0.2", "vs none: cost>0.1"], "poison")
    check_places(found, ["badnets"], ["none", "mixup+noise"])
    with pytest.raises(ValueError, match=r"no attack 'badnet' is run here; did you mean badnets\?"):
        check_places(conditions(["badnet: success>0.2"], "poison"), ["badnets"], ["none"])
    with pytest.raises(ValueError, match=r"no defence 'mixup\+noise' is run here; did you mean mixup\?"):
        check_places(found, ["badnets"], ["none", "mixup"])
