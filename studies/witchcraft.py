"""WITCHcraft against PGD: does a random step fool more images for the same number of gradients?

    mithridate study studies.witchcraft:small
    mithridate study studies.witchcraft:medium
    mithridate study studies.witchcraft:paper
    mithridate study studies.witchcraft:judged
    python -m studies.witchcraft studies/results/witchcraft-digits studies/results/witchcraft-judged

Both attacks have 20 steps from the same random starts. PGD tries four steps; WITCHcraft draws each step from 0 to twice
PGD's, so that the means are the same four. Each takes its best of the four on some test images, and the comparison is
made on the others. `judged` puts our PGD beside foolbox's and `standard` beside AutoAttack (both must be installed).
CIFAR-10 is expected as for `studies.witches_brew`.

Reference: Chiang, Geiping, Goldblum, Goldstein, Ni, Reich, Shafahi. "WITCHcraft: Efficient PGD Attacks with Random Step
Size". ICASSP 2020. arXiv 1911.07989.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mithridate as mi
from mithridate.core.transforms import Adversarial, Flip, Shift
from mithridate.evasion.judges import AutoAttack, FoolboxPGD
from mithridate.experiments.cells import Pair
from mithridate.experiments.presets import digits_recipe, fast_recipe, small_recipe
from mithridate.experiments.statistics import PairedMargin, paired_margin
from mithridate.experiments.study import load_results
from studies.witches_brew import cifar10

SEEDS = 5
"""Models of each recipe."""
STEPS = (1 / 8, 1 / 4, 1 / 2, 1)
"""Mean steps, in units of eps."""
CHOOSING = {"small": 297, "medium": 500, "paper": 1000}
"""Test images on which each attack's step is chosen."""
COMPARED = {"small": 500, "medium": 2000, "paper": 9000}
"""The other ones; digits has 797 in all."""


def robust(recipe: mi.Recipe, eps: float) -> mi.Recipe:
    """Adversarial training with PGD inside a ball, three steps."""
    move = Adversarial(ball=mi.Linf(eps=eps), steps=3, step=eps / 2)
    return replace(recipe, transforms=(*recipe.transforms, move))


def cells(
    name: str, data: mi.DataSource, plain: mi.Recipe, plain_eps: float, robust_eps: float
) -> list[mi.RobustAccuracy]:
    """Both attacks at four steps each, on a plain and on a robust model, with one start and with four."""
    found = []
    for recipe, eps in ((plain, plain_eps), (robust(plain, robust_eps), robust_eps)):
        for restarts in (1, 4):
            for step in STEPS:
                ball = mi.Linf(eps=eps)
                common: dict[str, Any] = {"ball": ball, "steps": 20, "restarts": restarts}
                attacks = (mi.PGD(**common, step=eps * step), mi.WITCHcraft(**common, high=2 * eps * step))
                images = CHOOSING[name] + COMPARED[name]
                found += [
                    mi.RobustAccuracy(data=data, recipe=recipe, attack=attack, images=images, seed=seed)
                    for attack in attacks
                    for seed in range(SEEDS)
                ]
    return found


def small() -> list[mi.RobustAccuracy]:
    """Returns the study on digits; about ten core-minutes."""
    return cells("small", mi.Digits(), digits_recipe(), 24 / 255, 48 / 255)


def medium() -> list[mi.RobustAccuracy]:
    """Returns the study on CIFAR-10, small, fast recipe; about an hour and a half of one core."""
    return cells("medium", cifar10(per_class=500), fast_recipe(small_recipe()), 1 / 255, 8 / 255)


def paper() -> list[mi.RobustAccuracy]:
    """Returns the study on all of CIFAR-10 with ResNet-18, adversarially trained inside 8/255; a day of a GPU."""
    recipe = mi.Recipe(model="resnet18", epochs=40, batch_size=128, learning_rate=0.1, weight_decay=5e-4)
    return cells("paper", cifar10(), replace(recipe, transforms=(Flip(), Shift())), 1 / 255, 8 / 255)


def judged() -> list[mi.RobustAccuracy]:
    """Returns ours beside other libraries' on the robust models of `small` and `medium`; a quarter of an hour."""
    found = []
    cifar, shrunk = cifar10(per_class=500), fast_recipe(small_recipe())
    for data, recipe, eps in ((mi.Digits(), digits_recipe(), 48 / 255), (cifar, shrunk, 8 / 255)):
        ball = mi.Linf(eps=eps)
        for attack in (mi.PGD(ball=ball), FoolboxPGD(ball=ball), mi.Standard(ball=ball), AutoAttack(ball=ball)):
            seeds = SEEDS if isinstance(attack, mi.PGD | FoolboxPGD) else 1
            images = 797 if isinstance(data, mi.Digits) else 2000
            found += [
                mi.RobustAccuracy(
                    data=data, recipe=robust(recipe, eps), attack=attack, images=images if seeds > 1 else 500, seed=seed
                )
                for seed in range(seeds)
            ]
    return found


# --- the comparison --------------------------------------------------------------------------------------------------


class Arm(NamedTuple):
    """One attack at its best step."""

    mean_step: float
    """In units of eps."""
    standing: np.ndarray
    """[seed, image] of the compared images."""
    gradients: float


class Duel(NamedTuple):
    """Both attacks on one kind of model, each at its best step."""

    kind: str
    eps: float
    restarts: int
    pgd: Arm
    witchcraft: Arm
    test: PairedMargin
    """By how many images (a share) WITCHcraft fools more."""


def duels(folder: Path) -> Iterator[Duel]:
    """Compares the attacks for each model and number of starts."""
    arms: dict[tuple[str, float, int], dict[str, dict[float, list[tuple[int, dict[str, Any]]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for trial, result in load_results(folder):
        attack, eps = trial["attack"], trial["attack"]["ball"]["eps"]
        step = (attack["step"] if attack["type"] == "pgd" else attack["high"] / 2) / eps
        kind = "robust" if any(one["type"] == "adversarial" for one in trial["recipe"]["transforms"]) else "plain"
        place = arms[kind, eps, attack["restarts"]]
        place[attack["type"]][round(step, 6)].append((trial["seed"], result["outcome"]))
    for (kind, eps, restarts), attacks in sorted(arms.items()):
        pgd, witch = _best(attacks["pgd"]), _best(attacks["witchcraft"])
        test = paired_margin(list(pgd.standing.mean(0)), list(witch.standing.mean(0)))
        yield Duel(kind, eps, restarts, pgd, witch, test)


def compare(folder: Path) -> Iterator[str]:
    """Says for each model and number of starts how many images stand under each attack, each at its best step."""
    pairs = load_results(folder)
    if any(trial["attack"]["type"] not in ("pgd", "witchcraft") for trial, _ in pairs):
        yield from side_by_side(pairs)
        return
    for one in duels(folder):
        pgd, witch, found = one.pgd, one.witchcraft, one.test.difference
        per_seed = 100 * (pgd.standing.mean(1) - witch.standing.mean(1))
        ends = "" if found.low is None or found.high is None else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        yield (
            f"{one.kind}, eps {255 * one.eps:.3g}/255, {one.restarts} start{'s' * (one.restarts > 1)}: "
            f"pgd {100 * pgd.standing.mean():.2f} % stand (step {pgd.mean_step:g} eps, {pgd.gradients:.1f} gradients), "
            f"witchcraft {100 * witch.standing.mean():.2f} % (mean step {witch.mean_step:g} eps, "
            f"{witch.gradients:.1f} gradients); it fools {100 * found.value:+.2f} points more ({ends}; "
            f"{pgd.standing.shape[1]} images x {len(per_seed)} models, one-sided p = {one.test.p:.3g}); by model "
            f"{', '.join(f'{each:+.2f}' for each in per_seed)}"
        )


def side_by_side(pairs: Iterable[Pair]) -> Iterator[str]:
    """Says what stands under each library's attack, over all models."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for trial, result in pairs:
        found[trial["data"]["type"], trial["attack"]["type"].rpartition(":")[2]].append(result["outcome"])
    for (data, attack), outcomes in sorted(found.items()):
        images = sum(len(one["stands"]) for one in outcomes)
        stands = sum(sum(one["stands"]) for one in outcomes)
        seconds = sum(one["attack_seconds"] for one in outcomes)
        yield f"{data}, {attack}: {stands:,} of {images:,} stand ({100 * stands / images:.2f} %), {seconds:.0f} s"


def _best(steps: dict[float, list[tuple[int, dict[str, Any]]]]) -> Arm:
    """The step under which fewest of the first images stand, and what stands of the others."""
    standing = {
        step: np.array([outcome["stands"] for _, outcome in sorted(found, key=lambda one: one[0])])
        for step, found in steps.items()
    }
    count = next(iter(standing.values())).shape[1]
    chosen_on = {CHOOSING[name] + COMPARED[name]: CHOOSING[name] for name in CHOOSING}[count]
    step = min(standing, key=lambda one: standing[one][:, :chosen_on].mean())
    gradients = float(np.mean([outcome["gradients_per_image"] for _, outcome in steps[step]]))
    return Arm(step, standing[step][:, chosen_on:].astype(float), gradients)


if __name__ == "__main__":
    for place in sys.argv[1:]:
        print(place)
        for line in compare(Path(place)):
            print(" ", line)
