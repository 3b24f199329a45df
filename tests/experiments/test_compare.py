"""What a table says of many cells at once: adjusted p-values, static beside adaptive attackers, and their access."""

from __future__ import annotations

import csv
import io

import pytest

from mithridate.experiments import words
from mithridate.experiments.table import Table, table
from tests.experiments import synthetic as made
from tests.experiments.synthetic import MIXUP, TARGETED, hits


@pytest.fixture(scope="module")
def full() -> Table:
    return table(made.pairs())


# --- many comparisons ------------------------------------------------------------------------------------------------


def naive_holm(p_values: list[float]) -> list[float]:
    """The smallest p times the number of tests, the next times one fewer, and never smaller than one before it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    for rank, i in enumerate(order):
        found[i] = max(min(1.0, (len(order) - k) * p_values[order[k]]) for k in range(rank + 1))
    return found


def test_p_values_are_adjusted_over_the_strictest_controls_of_all_attack_cells(full):
    attacks = [row for row in full.rows if not row.control]
    strictest = [row.against for row in attacks]
    assert {versus.name for versus in strictest} == {"random-noise"}
    assert {versus.comparisons for versus in strictest} == {len(attacks)} == {7}
    assert [versus.holm for versus in strictest] == pytest.approx(naive_holm([v.paired.p for v in strictest]))
    assert [versus.margin_holm for versus in strictest] == pytest.approx(naive_holm([v.margin.p for v in strictest]))
    other = [row.versus["no-attack"] for row in attacks]
    assert [versus.holm for versus in other] == pytest.approx(naive_holm([v.paired.p for v in other]))


def test_defences_are_a_family_of_their_own_without_the_controls(full):
    defended = [row.versus["undefended"] for row in full.rows if row.defense != "none" and not row.control]
    assert {versus.comparisons for versus in defended} == {len(defended)} == {4}
    assert [versus.holm for versus in defended] == pytest.approx(naive_holm([v.paired.p for v in defended]))
    assert [versus.worse_holm for versus in defended] == pytest.approx(naive_holm([v.worse.p for v in defended]))


def several(count: int, trials: int):
    """Attacks that succeed each time at several doses, and their controls that never do."""
    for number in range(count):
        threat = TARGETED | {"budget": 0.01 * (number + 1)}
        yield from hits("witches-brew", [1] * trials, threat=threat)
        yield from hits("random-noise", [0] * trials, threat=threat)


def test_holm_changes_the_verdict_of_a_perfect_success_on_few_cases():
    (alone,) = table(several(1, 6)).verdict()
    assert alone.endswith("exact paired p = 0.016): beats its control.")
    (row,) = (row for row in table(several(1, 6)).rows if not row.control)
    assert (row.against.holm, row.against.shown, row.against.comparisons) == (row.against.paired.p, True, 1)
    for sentence in table(several(7, 6)).verdict():
        assert "exact paired p = 0.016, Holm 0.11): not shown to beat its control" in sentence
        assert sentence.endswith("(6 paired cases are too few for 7 comparisons; 9 is the fewest).")
    assert all(row.against.paired.shown and not row.against.shown for row in table(several(7, 6)).rows if row.against)
    for sentence in table(several(7, 9)).verdict():
        assert sentence.endswith("exact paired p = 0.002, Holm 0.014): beats its control.")


def test_a_success_that_holm_takes_away_says_among_how_many():
    weak = TARGETED | {"budget": 0.5}
    pairs = [
        *several(3, 10),
        *hits("witches-brew", [1] * 6 + [0] * 4, threat=weak),
        *hits("random-noise", [0] * 10, threat=weak),
    ]
    found = table(pairs)
    row = next(row for row in found.rows if row.against and row.settings["threat"]["budget"] == 0.5)
    assert row.against.holm == row.against.paired.p  # the largest of four is the last step down
    assert row.against.shown
    more = [*pairs, *hits("badnets", [1] * 4 + [0] * 6, threat=weak)]
    sentence = next(s for s in table(more).verdict() if "50 % poison" in s or "6 of 10" in s)
    assert "exact paired p = 0.016, Holm 0.031): " in sentence
    assert "not shown to beat its control among 5 comparisons" in sentence


def test_a_defence_is_judged_among_all_defences():
    """One of twelve that helps on 7 of 7 cases (p = 0.008) is not enough."""
    others = [{"type": "mixup", "k": k} for k in range(2, 13)]
    pairs = [*hits("witches-brew", [1] * 7), *hits("witches-brew", [0] * 7, {"type": "cutout"})]
    (line,) = table(pairs).defenses()
    assert "helps against witches-brew (100 % → 0 %, p = 0.0078)" in line
    pairs += [pair for other in others for pair in hits("witches-brew", [1] * 7, other)]
    line = next(line for line in table(pairs).defenses() if line.startswith("cutout"))
    assert "no difference shown against witches-brew (100 % → 0 %, p = 0.0078, Holm 0.094)" in line


def test_printed_table_shows_both_p_values_only_where_they_differ():
    assert " Holm" not in str(table(several(1, 6)))
    text = str(table(several(7, 6)))
    assert text.count(" Holm") >= 7
    assert "0.016  0.11" in text


# --- static and adaptive ---------------------------------------------------------------------------------------------

CUTOUT = {"type": "cutout"}


def arms():
    """A defence met by both attackers, another by the static one alone, and an adaptive one alone."""
    return [
        *hits("witches-brew", [1] * 10),
        *hits("random-noise", [0] * 10),
        *hits("witches-brew", [0] * 8 + [1] * 2, MIXUP),
        *hits("witches-brew", [1] * 7 + [0] * 3, MIXUP, adaptive=True),
        *hits("witches-brew", [1] * 6 + [0] * 4, CUTOUT),
        *hits("badnets", [1] * 5 + [0] * 5, CUTOUT, adaptive=True),
    ]


def test_the_adaptive_row_of_a_static_one_differs_in_nothing_else():
    other = made.RECIPE | {"model": "convnet-wide"}
    found = table([*arms(), *hits("witches-brew", [0] * 10, MIXUP, adaptive=True, surrogate=other)])
    twins = {(row.attack, row.defense): found.adaptive_of(row) for row in found.rows if not row.adaptive}
    mixed = twins["witches-brew", "mixup"]
    assert mixed is not None
    assert (mixed.adaptive, mixed.success.successes, mixed.surrogate) == (True, 7, "convnet")
    assert [name for name, twin in twins.items() if twin] == [("witches-brew", "mixup")]
    assert all(found.adaptive_of(row) is None for row in found.rows if row.adaptive)


def test_printed_table_has_static_and_adaptive_success_side_by_side():
    text = str(table(arms()))
    text = text.replace("\u00a0", " ")
    lines = [line for line in text.splitlines() if line.startswith(("witches-brew", "badnets"))]
    assert len(lines) == 4  # the adaptive twin has no line of its own
    both = next(line for line in lines if " mixup " in line)
    assert "20 % (3 to 52)" in both
    assert "70 % (38 to 92)" in both
    assert both.index("20 %") < both.index("70 %")
    alone = next(line for line in lines if line.startswith("badnets (adaptive)"))
    assert "50 % (21 to 79)" in alone
    assert "static (95 %)" in text
    assert "static" not in str(table(list(several(1, 6))))


def test_defense_lines_say_what_each_attacker_achieves_and_which_was_not_run():
    mixup, cutout = sorted(table(arms()).defenses(), reverse=True)
    assert "helps against witches-brew (100 % → 20 %" in mixup
    assert "witches-brew (adapting) (100 % → 70 %" in mixup
    assert "only the static attacker" not in mixup
    assert "badnets (adapting) was not run without it (50 % with)" in cutout
    assert "only the static attacker was run for witches-brew" in cutout


def test_csv_and_json_have_the_adaptive_success_beside_the_static_one():
    found = table(arms())
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    rows = found.to_json()["rows"]
    for line, row in zip(lines, rows, strict=True):
        expected = "0.7" if (line["defense"], line["adaptive"]) == ("mixup", "False") else ""
        assert line["adaptive_success"] == expected
        assert row["adaptive_success"] == (0.7 if expected else None)
    versus = next(row["versus"]["undefended"] for row in rows if row["defense"] == "mixup")
    assert versus["shown"] is True
    assert versus["comparisons"] == 3


# --- what the attacker has -------------------------------------------------------------------------------------------

WIDE = made.RECIPE | {"model": "convnet-wide"}
POISONED = TARGETED | {"ball": {"type": "any-image"}, "budget": 0.0002}


def boxes():
    """One attack with white-, grey- and black-box access, one set of controls, with and without a defence."""
    shared = {"pretrain": made.RECIPE, "tuned": "head"}
    means = [{"knows_features": True}, {"knows_features": False}, {"knows_features": False, "surrogate": WIDE}]
    for won, own in zip((8, 5, 1), means, strict=True):
        yield from hits("poison-frogs", [1] * won + [0] * (10 - won), threat=POISONED, **shared, **own)
        yield from hits("poison-frogs", [0] * 10, MIXUP, threat=POISONED, **shared, **own)
    for control in ("random-noise", "no-attack"):
        yield from hits(control, [0] * 10, threat=POISONED, **shared, knows_features=True)
    yield from hits("no-attack", [0] * 10, MIXUP, threat=POISONED, **shared, knows_features=True)


def test_controls_serve_attackers_of_every_access():
    found = table(boxes())
    attacks = [row for row in found.rows if not row.control]
    assert [row.access for row in attacks if row.defense == "none"] == ["white box", "grey box", "black box"]
    assert [row.surrogate for row in attacks if row.defense == "none"] == ["convnet", "convnet", "convnet-wide"]
    for row in attacks:
        assert row.against is not None
        assert row.against.name == ("random-noise" if row.defense == "none" else "no-attack")
        assert row.against.paired.pairs == 10
        assert row.cost is not None
    assert {row.access for row in found.rows if row.control} == {""}


def test_a_defence_is_compared_with_the_same_attackers_undefended_cell():
    bare = {
        row.access: row.versus["undefended"].success.successes
        for row in table(boxes()).rows
        if row.defense == "mixup" and not row.control
    }
    assert bare == {"white box": 8, "grey box": 5, "black box": 1}


def test_scenes_are_apart_by_access_and_controls_stand_in_each():
    found = table(boxes())
    made_scenes = words.scenes(found.rows)
    titles = [scene.title.split(", cifar10")[0] for scene in made_scenes]
    assert titles == ["Transfer, white box", "Transfer, grey box", "Transfer, black box"]
    for scene in made_scenes:
        assert [row.attack for row in scene.rows if row.control] == ["random-noise", "no-attack", "no-attack"]
        assert len({row.access for row in scene.rows if not row.control}) == 1
    assert "the weights that the victim starts from, but" in made_scenes[0].threat[1]
    assert "trains the weights it starts from anew" in made_scenes[1].threat[1]
    assert "guesses the architecture (convnet-wide)" in made_scenes[2].threat[1]
    assert [s.split(", at")[0] for s in found.verdict()[:3]] == ["White box", "Grey box", "Black box"]
    (line,) = found.defenses()
    for access in ("white", "grey", "black"):
        assert f"({access} box)" in line


def test_the_usual_access_is_not_spelt_out():
    pairs = [*hits("witches-brew", [1] * 3), *hits("random-noise", [0] * 3)]
    (scene,) = words.scenes(table(pairs).rows)
    assert scene.title.startswith("From scratch, cifar10, convnet: ")
    (scene,) = words.scenes(table(list(hits("witches-brew", [1] * 3, surrogate=WIDE))).rows)
    assert scene.title.startswith("From scratch, black box, cifar10, convnet: ")


def test_files_from_before_the_keys_of_access_join_those_with_them():
    old = list(hits("witches-brew", [1] * 4))
    for settings, _ in old:
        assert not {"tuned", "knows_features"} & settings.keys()
    new = [
        (settings | {"tuned": "head", "knows_features": True, "seed": 4 + i}, done)
        for i, (settings, done) in enumerate(old)
    ]
    (row,) = table([*old, *new]).rows
    assert (row.trials, row.scenario, row.access) == (8, "from scratch", "grey box")


def test_mixed_and_own_learners_have_short_names():
    mixed = {"type": "mixed", "recipes": [made.RECIPE, WIDE]}
    own = {"type": "train-function", "train": {"function": "lab.training:fit", "source": "ab"}, "model": None}
    pairs = [
        *hits("witches-brew", [1] * 3, learner=mixed),
        *hits("witches-brew", [1] * 3, learner=own),
        *hits("witches-brew", [1] * 3, surrogate=mixed),
    ]
    found = {(row.model, row.surrogate, row.attack, row.access) for row in table(pairs).rows}
    assert found == {
        ("convnet + convnet-wide", "convnet + convnet-wide", "witches-brew", "grey box"),
        ("fit", "fit", "witches-brew", "grey box"),
        ("convnet", "convnet + convnet-wide", "witches-brew via convnet + convnet-wide", "black box"),
    }
