"""Results in plain words: labels, threat models, verdicts, what a defence does. No more is said than was shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from mithridate.experiments.labels import Settings, model_of, setting
from mithridate.experiments.statistics import FEWEST_PAIRS, Mean, PairedMargin, Rate, percent

if TYPE_CHECKING:
    from mithridate.experiments.table import Row, Versus

# --- the threat ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """How much poison: the attacker's limit and what was used of it."""

    limit: float
    """What the threat model allows, as a fraction of the training set."""
    count: float
    """Images really changed (median over trials)."""
    train: int
    """Training images."""
    bound: str
    """How far an image may move."""
    relabelled: float
    """Labels changed (median over trials)."""

    @classmethod
    def of(cls, trial: Settings, results: Sequence[dict[str, Any]]) -> Budget:
        """Read it from a trial.json and the results of its cell."""
        poisons = [result.get("poison") or {} for result in results] or [{}]
        middle = {key: median(poison.get(key) or 0 for poison in poisons) for key in ("count", "relabelled")}
        train = max(((result.get("data") or {}).get("train") or 0 for result in results), default=0)
        threat = trial["threat"]
        return cls(threat.get("budget") or 0.0, middle["count"], train, bound(threat.get("ball")), middle["relabelled"])

    @property
    def share(self) -> float:
        """Fraction of the training set really changed; what is allowed where nothing is."""
        return self.count / self.train if self.count and self.train else self.limit

    def __str__(self) -> str:
        parts = [f"{self.count:,.0f} of {self.train:,} images", self.bound]
        parts += ["labels changed"] if self.relabelled else []
        return f"{100 * self.share:.3g} % poison ({', '.join(part for part in parts if part)})"


def bound(ball: Settings | None) -> str:
    """How far an image may move, in two words.

    >>> (
    ...     bound({"type": "linf", "eps": 16 / 255}),
    ...     bound({"type": "any-image"}),
    ...     bound({"type": "patch", "area": 0.1}),
    ... )
    ('Linf 16/255', 'any image', 'patch of 10 % of the image')
    """
    ball = ball or {}
    name = ball.get("type", "")
    if name == "linf":
        return f"Linf {ball['eps'] * 255:.3g}/255"
    if name == "l2":
        return f"L2 {ball['eps']:.3g}"
    if name == "patch":
        return f"patch of {percent(ball['area'])} % of the image"
    return "any image" if name == "any-image" else setting(ball)


_POISON_CLASS = {
    "intended": "the class the attacker wants the model to answer",
    "target": "the class of the target itself",
    "third": "a third class, neither the target's nor the wanted one",
    "any": "any class",
}
_BOUND = {
    "linf": "no pixel value by more than {} (of a range of 0 to 255)",
    "l2": "each image by a Euclidean distance of at most {:.3g} (pixels counted from 0 to 1)",
    "patch": "only inside one rectangle, at most {} % of the image",
    "any-image": "to any image at all",
}


def threat_sentences(trial: Settings, budget: Budget) -> list[str]:
    """The threat model of a cell as a short text."""
    threat = trial["threat"]
    ball, goal = threat.get("ball") or {}, threat.get("goal") or {}
    images = f"{100 * max(budget.limit, budget.share):.3g} % of the training images"
    count = f" (here {budget.count:,.0f} of {budget.train:,})" if budget.train and budget.count else ""
    source = _POISON_CLASS.get(str(threat.get("poison_class")), str(threat.get("poison_class", "any class")))
    amounts = {
        "linf": lambda: f"{ball['eps'] * 255:.3g}",
        "l2": lambda: ball["eps"],
        "patch": lambda: percent(ball["area"]),
    }
    how = _BOUND.get(ball.get("type", ""), setting(ball) or "without a stated bound")
    how = how.format(amounts[ball["type"]]()) if ball.get("type") in amounts else how
    labels = "may also change their labels" if threat.get("relabel") else "leaves their labels as they are"
    knows = f"guesses the recipe ({model_of(trial['surrogate'])})" if trial.get("surrogate") else "knows the recipe"
    return [
        f"The attacker may replace up to {images}{count}, taken from {source}, and change them {how}.",
        f"The attacker {labels}, sees the training data and {knows}, but not the victim's random seed.",
        _goal_sentence(goal, threat.get("targets", 1)),
    ]


def _goal_sentence(goal: Settings, targets: int) -> str:
    if goal.get("type") == "backdoor":
        wanted = goal.get("intended")
        answer = "one class drawn in advance" if wanted is None else f"class {wanted}"
        return f"Goal: every test image that carries the attacker's trigger is classified as {answer} (a backdoor)."
    if goal.get("type", "misclassify") == "misclassify":
        what = "one test image" if targets == 1 else f"{targets} test images"
        return f"Goal: {what}, drawn before any training, classified as a wrong class that was also drawn in advance."
    return f"Goal: {setting(goal)}."


# --- numbers ---------------------------------------------------------------------------------------------------------


def p_text(p: float) -> str:
    """A p-value with its sign.

    >>> p_text(0.125), p_text(0.00001), p_text(1.0)
    ('p = 0.12', 'p < 0.001', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def span(interval: Rate | Mean, scale: float = 1.0, digits: int = 0) -> str:
    """The two ends of an interval, or nothing where there is none."""
    if interval.low is None or interval.high is None:
        return ""
    if isinstance(interval, Rate):
        return f"{percent(interval.low)} to {percent(interval.high)}"
    return f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}".replace("-", "−")


def tied(text: str) -> str:
    """The text with spaces that no line break may part: before units, around the signs of p-values.

    >>> tied("12 % of 20, p = 0.1") == "12\u00a0% of 20, p\u00a0=\u00a00.1"
    True
    """
    return re.sub(r"(?<=\d) (?=%)|(?<=\bp) (?=[=<])|(?<=[=<]) (?=\d)", "\u00a0", text)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, typeset.

    >>> signed(1.25), signed(-0.5), signed(0.01)
    ('+1.2', '−0.5', '0.0')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def counted(rate: Rate) -> str:
    """Successes of outcomes.

    >>> counted(Rate(3, 20, 20.0, 0.05, 0.36))
    '3 of 20'
    """
    return f"{rate.successes:,.10g} of {rate.n:,}" if rate.n else "none"


# --- verdicts --------------------------------------------------------------------------------------------------------


def place(row: Row) -> str:
    """Where a row was measured."""
    return f"{row.scenario}, {row.data}, {row.model}"


def where(row: Row, rows: Sequence[Row]) -> str:
    """What tells the place of a row from those of the others; empty where there is one place only."""
    varying = [name for name in ("scenario", "data", "model") if len({getattr(r, name) for r in rows}) > 1]
    return ", ".join(getattr(row, name) for name in varying)


@dataclass(frozen=True)
class Scene:
    """Rows that share place and threat model: one table."""

    title: str
    threat: list[str]
    rows: list[Row]


def scenes(rows: Iterable[Row]) -> list[Scene]:
    """Group rows by place and threat model, in their order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((place(row), setting(row.settings["threat"])), []).append(row)
    made = []
    for (name, _), found in groups.items():
        row = max(found, key=lambda r: (r.budget.count, not r.control))
        goal = "backdoor" if row.triggered else "chosen targets"
        made.append(Scene(f"{_capital(name)}: {goal}, {row.budget}", threat_sentences(row.settings, row.budget), found))
    return made


def verdict(row: Row, rows: Sequence[Row]) -> str:
    """What an attack did, what its control did, and whether that is shown to be more."""
    context = [where(row, rows)] + ([f"with {row.defense}"] if row.defense != "none" else [])
    context += ["attacker adapting to it"] if row.adaptive and row.defense != "none" else []
    opening = _capital(", ".join([*filter(None, context), f"at {row.budget}"]))
    if not row.success.n:
        return f"{opening}, {row.attack}: no outcome was measured."
    subject = "triggered images" if row.triggered else "targets"
    counts = counted(row.success) + _units(row)
    did = f"{row.attack} moved between {percent(row.success.low)} % and {percent(row.success.high)} % of {subject}"
    control = row.against
    if control is None:
        return f"{opening}, {did} ({counts}): no control was run beside it, so nothing is shown."
    against = f"the {control.name} control {counted(control.success)}; exact paired {p_text(control.paired.p)}"
    return f"{opening}, {did} ({counts}; {against}): {_conclusion(control)}"


def _units(row: Row) -> str:
    if row.success.n == row.trials:
        return ""
    cases = f"{row.trials} {'case' if row.trials == 1 else 'cases'}"
    return f" in {cases}" if row.triggered else f" outcomes of {cases}"


def standing(row: Row) -> str:
    """The verdict in a word: shown, weak (only against no attack), margins, open, alone (no control)."""
    control = row.against
    if control is None:
        return "alone"
    if control.paired.shown:
        return "shown" if control.name == "random-noise" else "weak"
    return "margins" if control.margin.shown else "open"


def _conclusion(control: Versus) -> str:
    name = "its control" if control.name == "random-noise" else "no attack (random noise was not run here)"
    if control.paired.shown:
        return f"beats {name}."
    few = f" ({control.paired.pairs} paired cases cannot show anything; {FEWEST_PAIRS} is the fewest)"
    hint = few if control.paired.pairs < FEWEST_PAIRS else ""
    if control.margin.shown:
        return f"success not shown to beat {name}, but margins are higher ({margin_text(control.margin)}){hint}."
    return f"not shown to beat {name}{hint}."


def margin_text(margin: PairedMargin) -> str:
    """Mean paired difference of margins with its p."""
    return f"{signed(margin.difference.value, 2)} logits, {p_text(margin.p)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- defences --------------------------------------------------------------------------------------------------------


def defense_lines(rows: Sequence[Row]) -> list[str]:
    """One line per defence and place: against which attacks it helps, what it removes or certifies, what it costs."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.defense != "none":
            groups.setdefault((where(row, rows), row.defense), []).append(row)
    return [
        f"{name}{f' ({context})' if context else ''}: {'; '.join(_defense_parts(found))}."
        for (context, name), found in groups.items()
    ]


def _defense_parts(rows: Sequence[Row]) -> list[str]:
    parts = [effect(row) for row in rows if not row.control]
    for row in rows:
        if row.recall is not None and not row.control:
            parts.append(
                f"finds {percent(row.recall)} % of the {row.attack} poisons among {row.removed:,.0f} rows removed"
            )
    certified = next((row for row in rows if row.certificate and row.attack == "no-attack"), None)
    certified = certified or next((row for row in rows if row.certificate), None)
    if certified is not None and certified.certificate is not None:
        share, radius = percent(certified.certificate.share), certified.certificate.median
        parts.append(
            f"certifies {share} % of answers against one replaced image or more (median radius {radius:g} rows)"
        )
    return [*parts, cost_text(rows)]


def effect(row: Row) -> str:
    """Whether a defence helps against one attack: its success with and without, paired."""
    name = f"{row.attack} (adapting)" if row.adaptive else row.attack
    bare = row.versus.get("undefended")
    if bare is None:
        return f"{name} was not run without it"
    numbers = f"{percent(bare.success.share)} % → {percent(row.success.share)} %"
    if bare.paired.shown:
        return f"helps against {name} ({numbers}, {p_text(bare.paired.p)})"
    if bare.worse.shown:
        return f"makes {name} stronger ({numbers}, {p_text(bare.worse.p)})"
    numbers += f", {p_text(bare.paired.p)}"
    if bare.margin.shown:
        fall = f"{abs(bare.margin.difference.value):.2f} logits, {p_text(bare.margin.p)}"
        return f"no difference in success shown against {name} ({numbers}), though margins fall ({fall})"
    return f"no difference shown against {name} ({numbers})"


def cost_text(rows: Sequence[Row]) -> str:
    """What a defence costs in clean accuracy, measured on unattacked data where that was run."""
    found = [row for row in rows if row.cost is not None]
    row = next((row for row in found if row.attack == "no-attack"), found[0] if found else None)
    if row is None or row.cost is None or math.isnan(row.cost.value):
        return "its cost in accuracy was not measured"
    points, ends = 100 * row.cost.value, span(row.cost, 100, 1)
    where = "" if row.attack == "no-attack" else f", measured under {row.attack}"
    if row.cost.low is None or row.cost.high is None:
        return f"accuracy {signed(-points)} points (no interval: fewer than two different models{where})"
    if row.cost.low > 0:
        return f"costs {points:.1f} points of accuracy ({ends}{where})"
    if row.cost.high < 0:
        gain = span(Mean(0, -row.cost.high, -row.cost.low, 0), 100, 1)
        return f"gains {-points:.1f} points of accuracy ({gain}{where})"
    return f"no cost in accuracy shown ({signed(-points)} points; cost {ends}{where})"
