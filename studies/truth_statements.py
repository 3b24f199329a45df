"""What "Truth or Backpropaganda?" states, beside what `studies.truth_or_backpropaganda` measured.

    python -m studies.truth_statements studies/results/truth-digits studies/results/truth-cifar10

A statement is agreed with where an interval or a paired test shows it. Where the paper says that nothing happens,
agreement is an interval that leaves less than one point of accuracy to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mithridate.experiments.measurement_table import MeasurementRow, measurement_table, words
from mithridate.experiments.statistics import Mean, difference, paired_margin
from mithridate.experiments.study import load_results
from studies.truth_or_backpropaganda import STARTS

Verdict = Literal["agrees", "disagrees", "undecided"]
LITTLE = 0.01
"""Of accuracy: less than this is nothing."""


class Statement(NamedTuple):
    """One of the paper's, and what was measured about it."""

    claim: str
    measured: str
    verdict: Verdict


def statements(folder: Path) -> Iterator[Statement]:
    """Compares a results folder with the paper, statement by statement."""
    table = measurement_table(load_results(folder))
    groups = {group.name.rpartition(":")[2]: group for group in table.groups}
    for name, judge in JUDGES.items():
        if name in groups:
            yield from judge(groups[name].rows)


def _about_minima(rows: Sequence[MeasurementRow]) -> Iterator[Statement]:
    for row in rows:
        certified, deep, free = (
            list(row.values(name).values()) for name in ("certified", "loss", "loss_trained_freely")
        )
        worse = all(one > other for one, other in zip(deep, free, strict=True))
        stayed = words(row.found["loss_after_training_on"])
        yield Statement(
            "deep ReLU networks have local minima that are not global ones",
            f"{sum(certified)} of {len(certified)} embedded minima certified; loss {words(row.found['loss'])}, after "
            f"training on from there {stayed}, trained freely {words(row.found['loss_trained_freely'])}",
            "agrees" if all(certified) and worse else "undecided" if worse else "disagrees",
        )


def _about_starts(rows: Sequence[MeasurementRow]) -> Iterator[Statement]:
    by_start = {row.settings["start"]: row for row in rows}
    usual = list(by_start["default"].values("train_loss").values())
    for start in STARTS[1:]:
        row = by_start[start]
        apart = difference(list(row.values("train_loss").values()), usual)
        bad = start in ("low", "high", "equal")
        above = apart.low is not None and apart.low > 0
        yield Statement(
            f"training from biases `{start}` ends {'in a poor minimum' if bad else 'as usual'}",
            f"training loss {words(row.found['train_loss'])}, usually {words(by_start['default'].found['train_loss'])}"
            f"; test accuracy {words(row.found['right'])}",
            "agrees" if bad == above else "undecided" if bad else "disagrees",
        )


def _about_norms(rows: Sequence[MeasurementRow]) -> Iterator[Statement]:
    for model, own in _by_model(rows).items():
        by_factor = {row.settings.get("factor"): _shares(row, "right") for row in own}
        half = by_factor[None].size // 2
        larger = {factor: shares for factor, shares in by_factor.items() if factor is not None and factor > 1}
        best = max(
            larger, key=lambda factor: larger[factor][:half].mean()
        )  # chosen on the first half, compared on the rest
        smaller = max((by_factor[None], by_factor[0.0]), key=lambda shares: shares[:half].mean())
        better, worse = (
            paired_margin(list(a[half:]), list(b[half:])) for a, b in ((larger[best], smaller), (smaller, larger[best]))
        )
        yield Statement(
            f"{model}: a pull to a larger norm is better than weight decay",
            f"test accuracy {100 * better.difference.value:+.2f} points at {best:g} times the norm "
            f"({_ends(better.difference)}; {better.difference.n} images, mean of {len(own[0].trials)} seeds; "
            f"one-sided p = {better.p:.2g})",
            "agrees" if better.p < 0.025 else "disagrees" if worse.p < 0.025 else "undecided",
        )


def _about_kernels(rows: Sequence[MeasurementRow]) -> Iterator[Statement]:
    families: dict[str, list[MeasurementRow]] = {}
    for row in rows:
        families.setdefault(row.settings["recipe.model"].partition(":")[0], []).append(row)
    for family, own in families.items():
        own = sorted(own, key=lambda row: int(row.settings["recipe.model"].rpartition("=")[2]))
        narrow, wide = (list(row.values("cosine").values()) for row in (own[0], own[-1]))
        apart = difference(wide, narrow)
        closer = apart.low is not None and apart.low > 0
        farther = apart.high is not None and apart.high < 0
        cosines = "; ".join(f"{row.settings['recipe.model']} {words(row.found['cosine'])}" for row in own)
        residual = family.startswith("resnet")
        claim = "does not fall" if residual else "falls"
        agrees = not closer if residual else closer
        yield Statement(
            f"{family}: the change of the tangent kernel {claim} with width",
            f"cosine of the kernels before and after: {cosines}",
            "agrees" if agrees and (closer or farther) else "undecided" if not (closer or farther) else "disagrees",
        )


def _about_rank(rows: Sequence[MeasurementRow]) -> Iterator[Statement]:
    for model, own in _by_model(rows).items():
        by_change = {row.settings["change"]: row for row in own}
        for change, words_for in (("min", "lower rank does not help"), ("max", "higher rank does not hurt")):
            found: list[str] = []
            verdicts: list[Verdict] = []
            for what, name in (("test accuracy", "right"), ("robust accuracy", "stands")):
                changed, usual = (_shares(by_change[one], name) for one in (change, "none"))
                apart = paired_margin(list(changed), list(usual)).difference
                found.append(f"{what} {100 * apart.value:+.2f} points ({_ends(apart)})")
                verdicts.append(none_shown(apart, 1 if change == "min" else -1))
            ranks = ", ".join(words(by_change[one].found["effective_rank_share"]) for one in (change, "none"))
            order: tuple[Verdict, ...] = ("disagrees", "undecided", "agrees")
            worst = next(one for one in order if one in verdicts)
            yield Statement(
                f"{model}: {words_for}",
                f"{'; '.join(found)}; effective rank as a share of the largest {ranks} without",
                worst,
            )


def none_shown(apart: Mean, sign: int) -> Verdict:
    """Whether a difference shows that there is none in one direction: 1, upwards; -1, downwards."""
    low, high = (-1.0 if apart.low is None else apart.low), (1.0 if apart.high is None else apart.high)
    least, most = (low, high) if sign > 0 else (-high, -low)
    return "disagrees" if least > 0 else "agrees" if most < LITTLE else "undecided"


JUDGES = {
    "EmbeddedMinimum": _about_minima,
    "PoorStart": _about_starts,
    "Pulled": _about_norms,
    "KernelDrift": _about_kernels,
    "Ranked": _about_rank,
}


def _by_model(rows: Sequence[MeasurementRow]) -> dict[str, list[MeasurementRow]]:
    found: dict[str, list[MeasurementRow]] = {}
    for row in rows:
        trial = next(iter(row.trials.values()))[0]
        attacked = any(one["type"] == "adversarial" for one in trial["recipe"]["transforms"])
        found.setdefault(trial["recipe"]["model"] + ", adversarially trained" * attacked, []).append(row)
    return found


def _shares(row: MeasurementRow, name: str) -> np.ndarray:
    """[images] share of seeds, image by image."""
    return np.mean(list(row.values(name).values()), axis=0)


def _ends(found: Mean) -> str:
    return "" if found.low is None or found.high is None else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


if __name__ == "__main__":
    for place in sys.argv[1:]:
        print(f"| {place} | measured | |\n|---|---|---|")
        for one in statements(Path(place)):
            print(f"| {one.claim} | {one.measured} | **{one.verdict}** |")
