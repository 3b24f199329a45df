"""The table of gradient inversion: its numbers against plain computations, its comparisons, its words."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from mithridate.experiments import leak_cautions, leak_words as words
from mithridate.experiments.leak_cells import leak_cells, state_of
from mithridate.experiments.leak_table import LeakRow, by_chance, leak_table, print_leak_table
from mithridate.experiments.rates import rate
from tests.experiments import leak_cases as made

PSNR = [20.0, 24.5, 18.2, 21.0, 26.3, 19.9, 22.2]
CONTROL = [11.0, 12.0, 10.5, 11.2, 12.1, 10.9, 13.0]


def cell(psnr, *defenses, rank=None, control=CONTROL, **more):
    """One pair per seed; `psnr` and `rank` are numbers, or lists for batches."""
    for seed, value in enumerate(psnr):
        settings = made.trial(*defenses, seed=seed, **more)
        values = value if isinstance(value, list) else [value]
        ranks = (rank or [1] * len(psnr))[seed]
        ranks = ranks if isinstance(ranks, list) else [ranks] * len(values)
        yield settings, made.result(settings, values, ranks, [control[seed]] * len(values))


def only(pairs) -> LeakRow:
    (row,) = leak_table(pairs).rows
    return row


def flipped(differences) -> float:
    """Sign-flip p by going through all signs."""
    seen = sum(differences)
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in _signs(len(differences))]
    return sum(total >= seen - 1e-9 for total in sums) / len(sums)


def _signs(count):
    return itertools.product((1, -1), repeat=count)


def stepped_down(values):
    """Holm by its definition: in the order of p, each times the number left, never falling."""
    order = sorted(range(len(values)), key=values.__getitem__)
    made_so_far, found = 0.0, [0.0] * len(values)
    for done, place in enumerate(order):
        made_so_far = max(made_so_far, min(1.0, values[place] * (len(values) - done)))
        found[place] = made_so_far
    return found


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_single_images_have_students_interval_quartiles_and_a_rate():
    row = only(cell(PSNR, rank=[1, 1, 3, 1, 700, 1, 2]))
    low, high = stats.t.interval(0.95, len(PSNR) - 1, np.mean(PSNR), stats.sem(PSNR))
    assert (row.found.psnr.value, row.found.psnr.low, row.found.psnr.high) == pytest.approx((np.mean(PSNR), low, high))
    assert row.found.quartiles == pytest.approx(np.percentile(PSNR, [25, 50, 75]))
    assert row.found.ssim.value == pytest.approx(np.mean(PSNR) / 40)
    assert (row.found.identified.successes, row.found.identified.n, row.found.identified.n_eff) == (4, 7, 7)
    assert row.found.rank == 1
    assert (row.trials, row.images, row.candidates) == (7, 7, 1000)
    assert row.control.psnr.value == pytest.approx(np.mean(CONTROL))
    assert row.control.identified.successes == 0
    assert row.seconds == pytest.approx(31.0)
    assert row.feature_distance is not None
    assert row.feature_distance.value == 0.5
    assert row.label_accuracy.value == 1


def test_a_batch_is_one_unit():
    psnr = [[20.0, 10.0], [18.0, 14.0], [25.0, 11.0]]
    row = only(cell(psnr, rank=[[1, 5], [1, 1], [9, 1]], batch=2))
    means = [15.0, 16.0, 18.0]
    assert row.found.psnr.n == 3
    assert row.found.psnr.high == pytest.approx(np.mean(means) + stats.t.ppf(0.975, 2) * stats.sem(means))
    assert row.found.quartiles[1] == 16.0
    assert row.found.identified == rate([[1, 0], [1, 1], [0, 1]])
    assert row.found.identified.n_eff < 6
    assert row.images == 6


def test_gain_over_the_control_is_paired_and_exact():
    row = only(cell(PSNR, rank=[1, 1, 1, 1, 1, 1, 4]))
    steps = [a - b for a, b in zip(PSNR, CONTROL, strict=True)]
    assert row.gain.psnr.difference.value == pytest.approx(np.mean(steps))
    assert row.gain.psnr.p == pytest.approx(flipped(steps)) == 1 / 128
    assert row.gain.identified.p == pytest.approx(stats.binomtest(6, 7, 1 / 1000, alternative="greater").pvalue)
    assert words.standing(row) == "shown"


def test_chance_is_counted_in_batches_whatever_hangs_together_in_them():
    assert by_chance([[1.0, 0, 0, 1], [0.0] * 4], 10) == pytest.approx(1 - 0.6**2)
    assert by_chance([[0.0], [0.0]], 10) == 1.0
    rng = np.random.default_rng(0)  # reconstructions that know nothing: one guess for a whole batch, or one for each
    for whole in (True, False):
        found = []
        for _ in range(2000):
            guesses = rng.integers(20, size=(8, 1 if whole else 4))
            found.append(
                by_chance(
                    (guesses == rng.permuted(np.tile(np.arange(20), (8, 1)), axis=1)[:, :4]).astype(float).tolist(), 20
                )
            )
        assert np.mean(np.array(found) <= 0.05) < 0.06


def test_a_mean_image_that_picks_out_some_has_to_be_beaten():
    def with_hits(attack: int, mean: int) -> LeakRow:
        pairs = []
        for seed, settings in enumerate(made.trial(seed=seed) for seed in range(10)):
            ranks, others = [1 if seed < attack else 500], [1 if seed < mean else 500]
            pairs.append((settings, made.result(settings, [12.0], ranks, [15.0], others)))
        return only(pairs)

    weak, strong = with_hits(3, 2), with_hits(10, 2)
    assert weak.gain.identified.p == 0.5  # one pair that differs; guessing alone would give 1e-7
    assert words.standing(weak) == "open"
    assert "mean image 2 of 10; against it p = 0.5" in words.verdict(weak, [weak])
    assert strong.gain.identified.p == 1 / 256
    assert words.standing(strong) == "shown"


def test_an_attack_below_the_mean_image_is_not_shown():
    row = only(cell(CONTROL, rank=[500] * 7, control=PSNR))
    assert row.gain.psnr.difference.value < 0
    assert row.gain.psnr.p == 1.0
    assert words.standing(row) == "open"


def test_higher_psnr_alone_is_said_to_be_pixels():
    row = only(cell(PSNR, rank=[9] * 7))
    assert words.standing(row) == "margins"
    assert "not shown to pick out more" in words.verdict(row, [row])


def test_a_defence_is_compared_with_the_same_cases_without_it():
    weaker = [value - 3 - 0.1 * seed for seed, value in enumerate(PSNR)]
    pairs = [*cell(PSNR), *cell(weaker[:5], made.SPARSE, rank=[1, 2, 2, 2, 2]), *cell([9.0] * 7, attack=made.WEAK)]
    table = leak_table(pairs)
    row = next(row for row in table.rows if row.defense == "sparsify")
    assert row.loss is not None
    assert row.loss.identified.pairs == 5
    steps = [3 + 0.1 * seed for seed in range(5)]
    assert row.loss.psnr.difference.value == pytest.approx(np.mean(steps))
    assert row.loss.psnr.p == pytest.approx(flipped(steps))
    assert (row.loss.identified.wins, row.loss.identified.losses) == (4, 0)
    assert row.loss.rate.share == 1.0
    assert all(other.loss is None for other in table.rows if other.defense == "none")


def test_p_values_are_adjusted_in_three_families():
    arms = [PSNR, CONTROL[::-1], [12.0, 13.0, 9.0, 14.0, 12.0, 13.0, 12.5]]
    pairs = [pair for n, arm in enumerate(arms) for pair in cell(arm, batch=2**n)]
    pairs += [pair for value in (0.1, 1.0) for pair in cell(arms[2], made.noise(value), batch=1)]
    rows = leak_table(pairs).rows
    bare, defended = ([row for row in rows if (row.defense != "none") == kind] for kind in (False, True))
    for family in (bare, defended):
        assert [row.gain.psnr_holm for row in family] == pytest.approx(
            stepped_down([row.gain.psnr.p for row in family])
        )
        assert {row.gain.comparisons for row in family} == {len(family)}
    losses = [row.loss for row in defended if row.loss]
    assert [loss.psnr_holm for loss in losses] == pytest.approx(stepped_down([loss.psnr.p for loss in losses]))
    assert len(losses) == 2


def test_a_larger_batch_that_begins_with_the_same_images_is_paired():
    pairs = [*cell(PSNR), *cell([[v, 9.0, 9.0, 9.0] for v in PSNR], made.LARGER)]
    row = next(row for row in leak_table(pairs).rows if row.defense != "none")
    assert row.batch == 1
    assert row.images == 28
    assert row.loss is not None
    assert row.loss.psnr.difference.n == 7
    for trial, result in pairs:
        if trial["defenses"]:
            result["case"]["rows"] = [7777, 1, 2, 3]
    assert next(row for row in leak_table(pairs).rows if row.defense != "none").loss is None


def test_what_is_not_there_is_none():
    settings = made.trial(made.noise(0.1), made.noise(1.0))
    done = made.result(settings, [20.0], [1])
    done["outcome"]["feature_distance"] = [None]
    done["outcome"]["label_accuracy"] = None
    row = only([(settings, done)])
    assert row.feature_distance is None
    assert row.label_accuracy.n == 0
    assert row.epsilon == 40
    assert row.found.psnr.low is None
    assert row.loss is None


# --- cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_all_settings_but_the_seed():
    pairs = [*cell(PSNR), *cell(PSNR, batch=2), *cell(PSNR, client={"tells_labels": False}), *cell(PSNR, adaptive=True)]
    rows = leak_table(pairs).rows
    assert [row.trials for row in rows] == [7, 7, 7]  # without a defence there is nothing to adapt to
    assert {row.knowledge for row in rows} == {"labels known", "labels not known"}


def test_data_that_moved_are_the_same_data():
    moved = [(trial | {"data": {"type": "digits", "train": 7}}, result) for trial, result in cell(PSNR[:2])]
    assert len(leak_cells([*moved[:1], *list(cell(PSNR[:2]))[1:]])) == 1


def test_models_are_told_apart_by_their_weights():
    trained, own = made.RECIPE | {"epochs": 20}, made.RECIPE | {"start_from": "mine.safetensors"}
    pairs = [*cell(PSNR), *cell(PSNR, recipe=trained), *cell(PSNR, recipe=own)]
    assert [state_of(trial) for trial, _ in pairs[::7]] == ["untrained", "trained", "checkpoint"]
    assert {row.model for row in leak_table(pairs).rows} == {
        "convnet, untrained",
        "convnet, trained",
        "convnet, checkpoint",
    }


def test_updates_are_named_with_what_tells_them_apart():
    updates = [{"type": "update", "steps": steps, "rate": 0.1} for steps in (2, 8)]
    pairs = [pair for sharing in updates for pair in cell(PSNR, client={"sharing": sharing})]
    assert [row.sharing for row in leak_table(pairs).rows] == ["update (steps=2)", "update (steps=8)"]


def test_defences_stand_in_the_order_of_their_numbers():
    pairs = [pair for value in (10.0, 0.1, 2.0) for pair in cell(PSNR, made.noise(value))]
    names = [row.defense for row in leak_table(pairs).rows]
    assert names == [f"clip-and-noise (noise={value})" for value in ("0.1", "2", "10")]


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return leak_table((trial, result) for trial, result, _ in made.realistic(cases=3))


def test_json_holds_every_number_and_no_nan(table):
    content = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert len(content["rows"]) == len(table.rows) == 45
    assert content["rows"][0]["found"]["psnr"]["value"] == table.rows[0].found.psnr.value
    assert content["rows"][0]["cell"]["seeds"] == [0, 1, 2]
    assert content["headline"] == words.headline(table.rows)


def test_csv_has_one_line_per_row(table):
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(lines) == 45
    for line, row in zip(lines, table.rows, strict=True):
        assert float(line["psnr"]) == row.found.psnr.value
        assert float(line["identified"]) == row.found.identified.share
        assert (line["loss psnr p"] == "") == (row.loss is None)
        assert (line["epsilon"] == "") == (row.epsilon is None)
    assert leak_table([]).to_csv().strip() == ""


def test_it_is_readable_at_a_hundred_columns(table):
    out = io.StringIO()
    print_leak_table(table, Console(file=out, width=100, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert not [line for line in lines if "…" in line]
    head = next(line for line in lines if line.startswith("defence"))
    assert [name for name in ("PSNR (95 %)", "gain", "picked out (95 %)", "rank", "vs none", "eps") if name in head]
    assert out.getvalue().count("inverting-gradients: digits, convnet, untrained, gradient, labels known") == 1
    assert str(leak_table([])) == "no finished trials"


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_headline_says_how_much_leaks():
    pairs = [*cell(PSNR, rank=[1, 1, 1, 1, 1, 1, 4])]
    pairs += cell([[v, 9.0] for v in PSNR], rank=[[1, 9]] * 2 + [[9, 9]] * 5, batch=2)
    pairs += [*cell(CONTROL, made.noise(1.0), rank=[50] * 7), *cell(PSNR, made.noise(0.1))]
    pairs += cell(CONTROL, made.noise(1.0), rank=[1] + [50] * 6, adaptive=True)
    assert words.headline(leak_table(pairs).rows) == (
        "Without a defence, 6 of 7 single images are picked out among 1,000 by their reconstruction, and 2 of 14 in "
        "batches of 2. With clip-and-noise (noise=1), the strongest of 2 defences, an attacker who knows it picks out "
        "1 of 7. The mean image, which knows nothing of the leak, picks out 0 of 7."
    )


def test_the_headline_of_an_idle_attack_says_so():
    pairs = [pair for given in ((), (made.SPARSE,)) for pair in cell(CONTROL, *given, rank=[500] * 7, control=PSNR)]
    said = words.headline(leak_table(pairs).rows)
    assert said.endswith("No attack is shown to pick out more.")
    assert "sparsify" not in said  # an idle attack speaks for no defence
    assert "though pixels come nearer" in words.headline(leak_table(cell(PSNR, rank=[500] * 7)).rows)


def test_few_cases_are_said_to_be_few():
    row = only(cell(PSNR[:3], rank=[9] * 3))
    assert "3 paired cases are too few; 6 is the fewest" in words.verdict(row, [row])
    many = leak_table(pair for n in range(5) for pair in cell(PSNR[:6], rank=[9] * 6, batch=n + 1)).rows
    assert {words.standing(row) for row in many} == {"alone"}  # 0.5 ** 6 passes alone and not as one of five


def test_what_defences_do_is_judged_after_the_correction():
    weaker, drowned = [v - 3 for v in PSNR], [[9.0]] * 7
    pairs = [*cell(PSNR), *cell(weaker, made.noise(0.1)), *cell(drowned, made.noise(1.0), rank=[90] * 7)]
    pairs += cell(PSNR, made.SPARSE)
    lines = leak_table(pairs).defenses()
    weak, strong, sparse = lines
    assert weak.startswith("clip-and-noise (noise=0.1), epsilon 40 for one message. Against inverting-gradients: ")
    assert "blurs single images (100 → 100 %, −3.0 dB)" in weak
    assert "hides single images (100 → 0 %, −12.7 dB)" in strong
    assert "no effect shown on single images (100 → 100 %, 0.0 dB)" in sparse
    assert all("No attacker who knows it was run" in line for line in lines)


def test_cautions_follow_from_the_numbers():
    pairs = [*cell(PSNR[:3], made.noise(0.1)), *cell(PSNR[:3], candidates=100), *cell(CONTROL, control=PSNR)]
    found = {kind.name: text for text, kind in leak_cautions.leak_cautions(leak_table(pairs).rows)}
    assert set(found) >= {"few-cases", "static-only", "one-message", "labels-known", "few-candidates", "untrained-only"}
    assert "control-not-beaten" not in found or "inverting-gradients" in found["control-not-beaten"]
    assert found["one-message"] == "Epsilon of 40 is that of one message."
    assert found["static-only"].startswith("inverting-gradients did not know of clip-and-noise")
    assert "8 x 8" in found["small-windows"]
    assert "Images were picked out among 100" in found["few-candidates"]


def test_an_adaptive_run_and_what_every_server_knows_quiet_the_caution():
    both = [*cell(PSNR, made.SPARSE), *cell(PSNR, made.SPARSE, adaptive=True), *cell(PSNR, made.LARGER)]
    names = [kind.name for _, kind in leak_cautions.leak_cautions(leak_table(both).rows)]
    assert "static-only" not in names
    alone = [kind.name for _, kind in leak_cautions.leak_cautions(leak_table(cell(PSNR, made.SPARSE)).rows)]
    assert "static-only" in alone


def test_warnings_of_trials_are_explained():
    settings = made.trial()
    done = made.result(settings, [20.0], [1], warnings=["out of memory; going on with pieces of 2"])
    found = {kind.name: text for text, kind in leak_cautions.leak_cautions(leak_table([(settings, done)]).rows)}
    assert found["out-of-memory"] == "out of memory; going on with pieces of 2 (inverting-gradients)"
    assert not math.isnan(only([(settings, done)]).found.rank)
