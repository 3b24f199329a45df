"""Stopping early: the level holds exactly, verdicts agree with those of all cases, intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binomtest

from mithridate.experiments.anytime import (
    FINAL,
    anytime_paired,
    anytime_rate,
    chance_to_show,
    decided,
    evidence,
)
from mithridate.experiments.statistics import LEVEL, holm, paired_exact


def column(values: np.ndarray) -> list[list[int]]:
    return [[int(value)] for value in values]


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (0, 3), (5, 2), (40, 11), (2, 60)])
def test_evidence_is_the_mixture_over_all_chances_above_one_half(wins: int, losses: int) -> None:
    mixture = quad(lambda p: 2 * p**wins * (1 - p) ** losses, 0.5, 1, epsabs=0)[0]
    assert math.isclose(evidence(wins, losses), math.log(mixture * 2.0 ** (wins + losses)), rel_tol=1e-6, abs_tol=1e-9)


def _ever_shown(most: int, level: float, looks: set[int]) -> float:
    """Chance that a fair coin is ever called "shown", summed over all its paths."""
    going = {0: 1.0}  # chance of so many wins, on paths that were never shown
    shown = 0.0
    for flips in range(1, most + 1):
        step: dict[int, float] = {}
        for wins, chance in going.items():
            for won in (0, 1):
                step[wins + won] = step.get(wins + won, 0.0) + chance / 2
        going = {}
        for wins, chance in step.items():
            early = flips in looks and math.exp(-evidence(wins, flips - wins)) / (1 - FINAL) <= level
            exact = binomtest(wins, flips, 0.5, alternative="greater").pvalue
            if early or (flips == most and exact / FINAL <= level):
                shown += chance
            else:
                going[wins] = chance
    return shown


@pytest.mark.parametrize("most", [9, 20, 60])
@pytest.mark.parametrize("level", [LEVEL, LEVEL / 7])
def test_no_way_of_looking_passes_the_level(most: int, level: float) -> None:
    """However many of the targets are ties, what is left is a fair coin: the worst case is that none is."""
    always = _ever_shown(most, level, set(range(most + 1)))
    assert 0 < always <= level
    assert _ever_shown(most, level, {most}) < always or most < 12


def test_p_of_the_last_look_remembers_the_best_one() -> None:
    first, second = [[1]] * 12 + [[0]] * 8, [[0]] * 12 + [[1]] * 8
    assert anytime_paired(first[:12], second[:12], 30).p == anytime_paired(first, second, 30).p <= LEVEL
    assert anytime_paired(second, first, 30).p == 1.0


def test_one_case_less_than_planned_is_no_final_test() -> None:
    first, second = [[1]] * 7 + [[0]] * 13, [[0]] * 20
    assert anytime_paired(first, second, 20).p == paired_exact(first, second).p / FINAL
    assert anytime_paired(first, second, 21).p > LEVEL


def play(
    rates: tuple[float, ...], control: float, most: int, rng: np.random.Generator
) -> tuple[list[bool], list[bool], float]:
    """One study run to its end and stopped early: verdicts of both, and the share of cases of the second."""
    bare = rng.random(most) < control
    arms = [rng.random(most) < rate for rate in rates]
    fixed = [p <= LEVEL for p in holm([paired_exact(column(arm), column(bare)).p for arm in arms])]
    ran = [most] * len(arms)
    for look in range(9, most, 2):
        sizes = [min(look, size) for size in ran]
        verdicts = decided(
            [(column(a[:n]), column(bare[:n])) for a, n in zip(arms, sizes, strict=True)], [most] * len(arms)
        )
        ran = [min(n, size) if done else size for n, size, done in zip(sizes, ran, verdicts, strict=True)]
    early = [anytime_paired(column(a[:n]), column(bare[:n]), most).p for a, n in zip(arms, ran, strict=True)]
    return fixed, [p <= LEVEL for p in holm(early)], sum(ran) / most / len(arms)


def test_verdicts_are_those_of_all_cases_for_less() -> None:
    rng = np.random.default_rng(0)
    played = [play((0.9, 0.9, 0.05, 0.0), 0.05, 40, rng) for _ in range(25)]
    same = np.mean([a == b for fixed, early, _ in played for a, b in zip(fixed, early, strict=True)])
    assert same >= 0.97
    assert np.mean([share for _, _, share in played]) < 0.5


def test_a_study_of_nothing_rarely_shows_something() -> None:
    rng = np.random.default_rng(1)
    false = [any(play((0.3,) * 4, 0.3, 24, rng)[1]) for _ in range(60)]
    assert sum(false) <= 5  # the level allows 0.025 x 60; 6 or more have a chance of 0.003


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.97])
def test_intervals_hold_at_every_look(share: float) -> None:
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(60):
        hits = column(rng.random(40) < share)
        rates = [anytime_rate(hits[:n]) for n in (5, 10, 20, 40)]
        missed += not all(rate.low <= share <= rate.high for rate in rates)
    assert missed <= 7  # 5 % are allowed


def test_intervals_at_the_edges() -> None:
    assert anytime_rate([]).n == 0
    nothing, all_of_them = anytime_rate([[0]] * 30), anytime_rate([[1]] * 30)
    assert nothing.low == 0.0
    assert all_of_them.high == 1.0
    assert math.isclose(nothing.high, 1 - all_of_them.low)
    assert anytime_rate([[1, 1]] * 5).n_eff == 5.0


def test_hope_falls_with_failures_and_rises_with_room() -> None:
    assert chance_to_show(0, 0, 9, 11) > chance_to_show(0, 0, 12, 8) > chance_to_show(0, 0, 16, 4) == 0.0
    assert chance_to_show(0, 0, 9, 40) > chance_to_show(0, 0, 9, 11)
    assert chance_to_show(9, 0, 0, 0) == 1.0


def test_comparisons_share_the_level() -> None:
    won, tied = ([[1]] * 9, [[0]] * 9), ([[0]] * 9, [[0]] * 9)
    assert decided([won], [20]) == [True]
    fresh = ([[0]] * 3, [[0]] * 3)
    assert decided([won, fresh, fresh], [20] * 3) == [False, False, False]
    assert decided([won, tied], [9, 9]) == [True, True]
