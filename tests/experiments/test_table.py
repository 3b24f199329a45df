"""The table against numbers counted by hand in made-up trials."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
from statistics import fmean

import pytest
from rich.console import Console
from scipy import stats

from mithridate.experiments.table import Table, print_table, table
from tests.experiments import synthetic as made
from tests.experiments.synthetic import BACKDOOR, MIXUP, TARGETED, hits, result, trial


@pytest.fixture(scope="module")
def full() -> Table:
    return table(made.pairs())


def row_of(
    table: Table, attack: str, defense: str = "none", scenario: str = "from scratch", triggered: bool | None = None
):
    found = [
        row
        for row in table.rows
        if (row.attack, row.defense, row.scenario) == (attack, defense, scenario) and triggered in (None, row.triggered)
    ]
    assert len(found) == 1
    return found[0]


def test_cells_are_trials_that_differ_in_the_seed_alone(full):
    assert [row.trials for row in full.rows if row.scenario == "transfer"] == [4, 4, 4]
    brew = row_of(full, "witches-brew")
    assert (brew.trials, brew.victims, brew.success.n) == (20, 20, 20)
    clean = row_of(full, "no-attack", triggered=False)
    assert (clean.trials, clean.victims, clean.success.n) == (20, 160, 160)
    assert clean.success.n_eff == 20
    assert len(full.rows) == 2 * 3 + 4 * 3 + 3


def test_order_of_the_trials_does_not_matter(full):
    shuffled = made.pairs()[::-1]
    assert table(shuffled).to_json() == full.to_json()


def test_success_and_paired_p_are_those_counted_by_hand(full):
    brew = row_of(full, "witches-brew")
    assert brew.success.successes == 9
    noise = brew.versus["random-noise"]
    assert (noise.success.successes, noise.paired.pairs) == (1, 20)
    assert noise.paired.p == pytest.approx(stats.binomtest(noise.paired.wins, noise.paired.wins).pvalue / 2)
    exact = stats.binomtest(9, 20).proportion_ci(method="exact")  # the mid-p interval lies just inside
    assert exact.low < brew.success.low < exact.low + 0.02
    assert exact.high - 0.02 < brew.success.high < exact.high


def test_margins_are_compared_seed_by_seed(full):
    by_seed = {
        name: {t["seed"]: r["outcome"]["margin"][0][0] for t, r in made.misclassify_pairs() if _is(t, name)}
        for name in ("witches-brew", "random-noise")
    }
    steps = [by_seed["witches-brew"][seed] - by_seed["random-noise"][seed] for seed in range(20)]
    margin = row_of(full, "witches-brew").versus["random-noise"].margin
    assert margin.difference.value == pytest.approx(fmean(steps))
    assert margin.p == stats.wilcoxon(steps, alternative="greater").pvalue


def _is(settings, name):
    return settings["attack"]["type"] == name and not settings["defenses"]


def test_only_equal_seeds_with_equal_targets_are_paired():
    attack, noise = list(hits("witches-brew", [1] * 8)), list(hits("random-noise", [0] * 7))
    noise[0][1]["case"]["target_rows"] = [123456]
    row = row_of(table(attack + noise), "witches-brew")
    assert row.versus["random-noise"].paired.pairs == 6
    assert row.versus["random-noise"].success.n == 7


def test_controls_must_share_threat_and_defence_but_no_attack_only_the_aim():
    other = TARGETED | {"ball": {"type": "linf", "eps": 8 / 255}}
    pairs = [
        *hits("witches-brew", [1] * 6),
        *hits("random-noise", [0] * 6, threat=other),
        *hits("random-noise", [0] * 6, MIXUP),
        *hits("no-attack", [0] * 6, threat=other),
    ]
    row = row_of(table(pairs), "witches-brew")
    assert set(row.versus) == {"no-attack"}
    assert row.against is not None
    assert row.against.paired.p == pytest.approx(1 / 64)


def test_a_control_shows_the_attacks_own_trigger():
    def cell(name, hit, size):
        for seed in range(3):
            settings = trial(name, BACKDOOR, seed=seed)
            settings["attack"] = {"type": name, "trigger": {"type": "patch-trigger", "share": size}}
            yield settings, result(settings, [[hit] * 4], [[0.0] * 4], [0.9])

    pairs = [*cell("badnets", 1, 0.2), *cell("no-attack", 1, 0.9), *cell("no-attack", 0, 0.2)]
    row = next(row for row in table(pairs).rows if not row.control)
    assert row.versus["no-attack"].success.successes == 0


def test_of_two_trials_with_one_seed_the_one_with_more_victims_stays():
    few = trial("witches-brew", TARGETED, victims=1)
    many = trial("witches-brew", TARGETED, victims=3)
    pairs = [
        (few, result(few, [[1]], [[1.0]], [0.9])),
        (many, result(many, [[1], [0], [0]], [[1.0]] * 3, [0.9] * 3)),
    ]
    for order in (pairs, pairs[::-1]):
        (row,) = table(order).rows
        assert (row.trials, row.success.n, row.success.successes) == (1, 3, 1)


def test_eligible_targets_are_those_that_most_clean_victims_get_right():
    pairs = list(hits("witches-brew", [1, 1, 0, 0]))
    for seed, right in enumerate(([1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0])):
        settings = trial("no-attack", TARGETED, seed=seed, victims=3)
        done = result(settings, [[0]] * 3, [[-1.0]] * 3, [0.9] * 3)
        done["outcome"]["correct"] = [[value] for value in right]
        pairs.append((settings, done))
    row = row_of(table(pairs), "witches-brew")
    assert row.eligible is not None
    assert (row.eligible.successes, row.eligible.n) == (1, 2)
    assert (row.success.successes, row.success.n) == (2, 4)


def test_without_stored_correctness_there_is_no_eligible_rate():
    pairs = [*hits("witches-brew", [1, 0]), *hits("no-attack", [0, 0])]
    for _, done in pairs:
        del done["outcome"]["correct"]
    assert all(row.eligible is None for row in table(pairs).rows)


def test_clean_victims_that_cases_share_count_once():
    pairs = []
    for seed in range(10):
        settings = trial("no-attack", TARGETED, seed=seed, victims=2)
        pairs.append((settings, result(settings, [[0]] * 2, [[-1.0]] * 2, [0.90, 0.92])))
    (row,) = table(pairs).rows
    assert row.accuracy.n == 2
    assert row.accuracy.value == pytest.approx(0.91)


def test_cost_is_against_undefended_clean_victims(full):
    lost = row_of(full, "no-attack", "partition-vote").cost
    clean, voted = (
        next(
            r["outcome"]["accuracy"]
            for t, r in made.backdoor_pairs()
            if t["attack"]["type"] == "no-attack" and [d["type"] for d in t["defenses"]] == names
        )
        for names in ([], ["partition-vote"])
    )
    assert lost is not None
    assert lost.value == pytest.approx(fmean(clean) - fmean(voted))
    expected = stats.ttest_ind(clean, voted, equal_var=False).confidence_interval(0.95)
    assert (lost.low, lost.high) == pytest.approx((expected.low, expected.high))
    assert row_of(full, "no-attack", triggered=True).cost is None


def test_poisons_found_and_certificates(full):
    spectral, vote = row_of(full, "badnets", "spectral-signatures"), row_of(full, "badnets", "partition-vote")
    assert spectral.detection is not None
    assert spectral.detection.recall is not None
    assert spectral.detection.recall.share == pytest.approx(0.78)
    assert spectral.detection.removed == 150
    assert vote.certificate is not None
    radii = [
        value
        for t, r in made.backdoor_pairs()
        if t["attack"]["type"] == "badnets" and r["outcome"]["radius"]
        for value in r["outcome"]["radius"][0]
    ]
    assert vote.certificate.share == pytest.approx(sum(v >= 2 for v in radii) / len(radii))
    assert vote.certificate.covers == 0
    nothing = row_of(full, "no-attack", "partition-vote").certificate
    assert nothing is not None
    assert nothing.covers is None


def test_the_unit_of_a_backdoor_is_the_case_not_the_image():
    pairs = []
    for attack, hit in (("badnets", 1), ("random-noise", 0)):
        for seed in range(3):
            settings = trial(attack, BACKDOOR, seed=seed)
            pairs.append((settings, result(settings, [[hit] * 500], [[0.0] * 500], [0.9])))
    row = row_of(table(pairs), "badnets")
    assert row.success.n_eff == 3  # 1,500 images that all agree
    assert row.success.low < 0.5
    assert row.versus["random-noise"].paired.p == pytest.approx(1 / 8)


def test_of_a_backdoor_the_table_says_what_triggered_images_are_taken_for():
    pairs = []
    for seed, (first, second) in enumerate([(1, 0), (1, 1), (0, 0)]):
        settings = trial("badnets", BACKDOOR, seed=seed, victims=2)
        found = result(settings, [[1, 0], [0, 0]], [[1.0, -1.0], [-1.0, -1.0]], [0.9, 0.9])
        found["outcome"]["correct"] = [[0, first], [second, 0]]
        pairs.append((settings, found))
    made = table(pairs)
    (row,) = made.rows
    assert (row.right.value, row.right.n) == (pytest.approx(0.25), 3)
    assert "true label" in str(made)
    assert "25.0" in str(made)
    assert "true_label" in made.to_csv().splitlines()[0]
    assert row_of(table(hits("witches-brew", [1, 0])), "witches-brew").right.n == 0


# --- sentences -------------------------------------------------------------------------------------------------------


def test_verdict_says_what_was_done_by_whom_and_what_is_shown():
    pairs = [*hits("witches-brew", [1] * 3 + [0] * 17), *hits("random-noise", [0] * 20)]
    (sentence,) = table(pairs).verdict()
    assert sentence.startswith(
        "At 2 % poison (100 of 5,000 images, Linf 16/255), witches-brew moved between 4 % and 36 %"
    )
    assert (
        "(3 of 20; the random-noise control 0 of 20; exact paired p = 0.12): not shown to beat its control." in sentence
    )


@pytest.mark.parametrize(
    ("attack", "noise", "ending"),
    [
        ([1] * 8, [0] * 8, ": beats its control."),
        ([1] * 4, [0] * 4, "not shown to beat its control (4 paired cases cannot show anything; 6 is the fewest)."),
        ([0] * 8, [0] * 8, ": not shown to beat its control."),
        ([0] * 8, [1] * 8, ": not shown to beat its control."),
        ([1] * 8, [], ": no control was run beside it, so nothing is shown."),
    ],
)
def test_verdicts_end_in_what_was_shown(attack, noise, ending):
    (sentence,) = table([*hits("witches-brew", attack), *hits("random-noise", noise)]).verdict()
    assert sentence.endswith(ending)


def test_margins_that_move_without_success_are_said_to():
    pairs = [*hits("witches-brew", [0] * 8), *hits("random-noise", [0] * 8)]
    for settings, done in pairs:
        done["outcome"]["margin"] = [[-1.0 if settings["attack"]["type"] == "witches-brew" else -3.0]]
    (sentence,) = table(pairs).verdict()
    assert "success not shown to beat its control, but margins are higher (+2.00 logits, p = 0.0039)" in sentence


def test_places_are_named_only_where_there_are_several(full):
    assert [s.split(",")[0] for s in full.verdict()] == ["From scratch"] * 6 + ["Transfer"]
    one = table(list(made.transfer_pairs())).verdict()
    assert one[0].startswith("At 0.02 % poison (1 of 5,000 images, any image)")


def test_defense_lines_tell_help_from_nothing_shown_and_cost(full):
    mixup, spectral, vote = (
        next(d for d in full.defenses() if d.startswith(n)) for n in ("mixup", "spectral", "partition")
    )
    assert "helps against witches-brew (45 % → 10 %" in mixup
    assert "no difference shown against badnets" in mixup
    assert "costs 1.9 points of accuracy (" in mixup
    assert "finds 78 % of the badnets poisons (" in spectral
    assert "among 150 rows removed, of which 52 % are poison" in spectral
    assert "drops 3.0 % (3.0 to 3.0) of clean data" in spectral
    assert "certifies 75 % of answers against one replaced image or more" in vote


def test_a_defense_that_makes_things_worse_is_said_to():
    pairs = [*hits("witches-brew", [0] * 8), *hits("witches-brew", [1] * 8, MIXUP), *hits("no-attack", [0] * 8)]
    (line,) = table(pairs).defenses()
    assert "makes witches-brew stronger (0 % → 100 %, p = 0.0039)" in line
    assert "measured under witches-brew" in line


def test_a_defense_without_its_undefended_attack_or_cost_is_said_to_be_unmeasured():
    (line,) = table(list(hits("witches-brew", [0] * 3, MIXUP))).defenses()
    assert line == (
        "mixup: witches-brew was not run without it (0 % with); only the static attacker was run; its cost in accuracy "
        "was not measured."
    )


def test_settings_are_named_only_where_two_variants_meet():
    pairs = list(hits("witches-brew", [1] * 3))
    assert table(pairs).rows[0].attack == "witches-brew"
    longer = copy.deepcopy(pairs)
    for settings, _ in longer:
        settings["attack"]["steps"] = 500
    assert {row.attack for row in table(pairs + longer).rows} == {
        "witches-brew (steps=250)",
        "witches-brew (steps=500)",
    }


def test_an_adaptive_attack_is_a_row_of_its_own():
    static, adaptive = hits("witches-brew", [0] * 8, MIXUP), hits("witches-brew", [1] * 8, MIXUP, adaptive=True)
    found = table([*hits("witches-brew", [1] * 8), *static, *adaptive])
    assert [row.adaptive for row in found.rows] == [False, False, True]
    (line,) = found.defenses()
    assert "helps against witches-brew (100 % → 0 %" in line
    assert "no difference shown against witches-brew (adapting) (100 % → 100 %" in line


# --- out -------------------------------------------------------------------------------------------------------------


def test_json_is_plain_and_has_no_nan(full):
    text = json.dumps(full.to_json(), allow_nan=False)
    back = json.loads(text)
    assert len(back["rows"]) == len(full.rows)
    assert back["rows"][0]["success"]["share"] == pytest.approx(full.rows[0].success.share)
    assert back["rows"][0]["cell"]["seeds"] == list(range(20))
    assert back["verdict"] == full.verdict()


def test_csv_reads_back(full):
    lines = list(csv.DictReader(io.StringIO(full.to_csv())))
    assert len(lines) == len(full.rows)
    brew = next(line for line in lines if line["attack"] == "witches-brew" and line["defense"] == "none")
    assert float(brew["success"]) == 0.45
    assert float(brew["random-noise p"]) == pytest.approx(row_of(full, "witches-brew").versus["random-noise"].paired.p)
    assert brew["median_radius"] == ""
    assert float(brew["random-noise p (Holm)"]) == pytest.approx(
        row_of(full, "witches-brew").versus["random-noise"].holm
    )
    assert (brew["access"], brew["surrogate"], brew["adaptive_success"]) == ("grey box", "convnet", "")


def test_printed_table_has_every_row_and_sentence(full):
    out = io.StringIO()
    print_table(full, Console(file=out, width=600))
    text = out.getvalue()
    assert text.count("badnets ") >= 4
    for sentence in (*full.verdict(), *full.defenses()):
        assert sentence in text


def test_printed_names_are_not_read_as_markup():
    pairs = list(hits("[red]x[/red]", [1]))
    assert "[red]x[/red]" in str(table(pairs))


def test_no_trials_make_an_empty_table():
    assert str(table([])) == "no finished trials"
    assert table([]).to_json() == {"rows": [], "doses": [], "verdict": [], "defenses": []}
    assert table([]).to_csv().strip() == ""


def test_results_with_gaps_are_taken_as_they_are():
    settings = trial("witches-brew", TARGETED)
    (row,) = table([(settings, {"outcome": {"success": [[1]]}})]).rows
    assert row.success.successes == 1
    assert row.accuracy.n == 0
    assert math.isnan(row.margin.value)
    assert "no control was run" in table([(settings, {"outcome": {"success": [[1]]}})]).verdict()[0]
    (silent,) = table([(settings, {"outcome": {"success": []}})]).verdict()
    assert silent.endswith("no outcome was measured.")


# --- bugs that were ------------------------------------------------------------------------------------------------


def test_one_deterministic_fit_made_several_times_has_no_interval():
    pairs = []
    for defenses, accuracy in (((), 0.9), ((MIXUP,), 0.89)):
        settings = trial("no-attack", TARGETED, *defenses, victims=3)
        pairs.append((settings, result(settings, [[0]] * 3, [[0.0]] * 3, [accuracy] * 3)))
    found = table([*pairs, *hits("witches-brew", [0], MIXUP)])
    cost = row_of(found, "no-attack", "mixup").cost
    assert cost is not None
    assert (cost.low, cost.high, cost.n) == (None, None, 1)
    assert "accuracy −1.0 points (no interval: fewer than two different models)" in found.defenses()[0]


def test_recipes_of_two_scenarios_do_not_lengthen_the_name_of_the_model():
    features = {**made.RECIPE, "weight_decay": 0.1}
    pairs = [*hits("witches-brew", [0]), *hits("witches-brew", [0], pretrain=made.RECIPE, learner=features)]
    assert {row.model for row in table(pairs).rows} == {"convnet"}
    pairs += hits("witches-brew", [0], learner=made.RECIPE | {"epochs": 80})
    names = {row.model for row in table(pairs).rows}
    assert names == {"convnet", "convnet (epochs=40)", "convnet (epochs=80)"}


def test_one_poison_of_few_images_is_more_than_its_nominal_budget():
    settings = trial("poison-frogs", TARGETED | {"budget": 0.0001})
    done = result(settings, [[1]], [[1.0]], [0.9])
    done["poison"]["count"], done["data"]["train"] = 1, 500
    (row,) = table([(settings, done)]).rows
    assert str(row.budget) == "0.2 % poison (1 of 500 images, Linf 16/255)"


def test_beating_no_attack_is_not_called_beating_random_noise():
    pairs = [*hits("witches-brew", [1] * 8), *hits("no-attack", [0] * 8)]
    (sentence,) = table(pairs).verdict()
    assert "the no-attack control 0 of 8" in sentence
    assert sentence.endswith("beats no attack (random noise was not run here).")
