"""Results in plain words: labels, threat models, verdicts, what a defence does. No more is said than was shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mithridate.experiments.cells import ACCESSES, USUAL_ACCESS
from mithridate.experiments.labels import setting
from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.statistics import FEWEST_PAIRS, Mean, Rate, percent
from mithridate.experiments.threats import Budget as Budget, threat_sentences

if TYPE_CHECKING:
    from mithridate.experiments.compare import Versus
    from mithridate.experiments.table import Row

# --- numbers ---------------------------------------------------------------------------------------------------------


def p_text(p: float) -> str:
    """A p-value with its sign.

    >>> p_text(0.125), p_text(0.00001), p_text(1.0)
    ('p = 0.12', 'p < 0.001', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def p_texts(p: float, adjusted: float) -> str:
    """A p-value, and beside it what Holm's correction makes of it, where that is another number.

    >>> p_texts(0.004, 0.03), p_texts(0.5, 0.5)
    ('p = 0.004, Holm 0.03', 'p = 0.5')
    """
    return p_text(p) if p == adjusted else f"{p_text(p)}, Holm {bare_p(adjusted)}"


def bare_p(p: float) -> str:
    """A p-value for a column of them.

    >>> bare_p(0.125), bare_p(0.00001)
    ('0.12', '< 0.001')
    """
    return p_text(p).removeprefix("p ").removeprefix("= ")


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
    return re.sub(r"(?<=\d) (?=%)|(?<=\bp) (?=[=<])|(?<=[=<]) (?=\d)|(?<=\bHolm) (?=[<\d])", "\u00a0", text)


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


def where(row: Row, rows: Sequence[Row], *, attacker: bool = True) -> str:
    """What tells the place of a row, and the attacker's access, from those of the others; empty where nothing does."""
    means = access(row, rows) if attacker else ""
    return ", ".join(filter(None, (_varying(row, rows, "scenario"), means, _varying(row, rows, "data", "model"))))


def _varying(row: Row, rows: Sequence[Row], *names: str) -> str:
    return ", ".join(getattr(row, name) for name in names if len({getattr(r, name) for r in rows}) > 1)


def access(row: Row, rows: Iterable[Row]) -> str:
    """The attacker's access, where others in this scenario have another, or where it is not the usual one."""
    if not row.access:
        return ""
    met = {r.access for r in rows if r.access and r.scenario == row.scenario}
    return row.access if len(met) > 1 or row.access != USUAL_ACCESS[row.scenario] else ""


def dose(row: Row, rows: Iterable[Row]) -> str:
    """The dose of a row where the same attack was run at others as well."""
    same = [other.budget for other in rows if other.attack == row.attack]
    share = f"{100 * row.budget.share:.3g} % poison" if len({other.share for other in same}) > 1 else ""
    bound = row.budget.bound if len({other.bound for other in same}) > 1 else ""
    return ", ".join(filter(None, (share, bound)))


@dataclass(frozen=True)
class Scene:
    """Rows that share place, threat model and the attacker's access, with their controls: one table."""

    title: str
    threat: list[str]
    rows: list[Row]


def scenes(rows: Sequence[Row]) -> list[Scene]:
    """Group rows in their order; controls use none of the attacker's means and stand beside every access."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((place(row), setting(row.settings["threat"])), []).append(row)
    made = []
    for found in groups.values():
        for means in sorted({row.access for row in found if row.access}, key=ACCESSES.index) or [""]:
            made.append(_scene([row for row in found if row.control or row.access == means], rows))
    return made


def _scene(found: list[Row], rows: Sequence[Row]) -> Scene:
    row = max(found, key=lambda r: (r.budget.count, not r.control))
    attack = next((r for r in found if not r.control), row)
    name = ", ".join(filter(None, (row.scenario, access(attack, rows), row.data, row.model)))
    title = f"{_capital(name)}: {aim(row)}, {row.budget}"
    return Scene(title, threat_sentences(attack.settings, row.budget), found)


def verdict(row: Row, rows: Sequence[Row]) -> str:
    """What an attack did, what its control did, and whether that is shown to be more."""
    context = [where(row, rows)] + ([f"with {row.defense}"] if row.defense != "none" else [])
    context += ["attacker adapting to it"] if row.adaptive and row.defense != "none" else []
    opening = _capital(", ".join([*filter(None, context), f"at {row.budget}"]))
    if not row.success.n:
        return f"{opening}, {row.attack}: no outcome was measured."
    did, counts = _left(row) if row.goal == "availability" else _moved(row)
    control = row.against
    if control is None:
        return f"{opening}, {did} ({counts}): no control was run beside it, so nothing is shown."
    seen = counted(control.success) if control.accuracy is None else f"{100 * control.accuracy.value:.1f} %"
    test = f"{'exact paired' if control.exact else 'Welch'} {p_texts(control.paired.p, control.holm)}"
    return f"{opening}, {did} ({counts}; the {control.name} control {seen}; {test}): {_conclusion(control)}"


def _moved(row: Row) -> tuple[str, str]:
    """What an attack on images did, and on how many."""
    ends = f"between {percent(row.success.low)} % and {percent(row.success.high)} % of {subject(row)}"
    return f"{row.attack} moved {ends}", counted(row.success) + _units(row)


def _left(row: Row) -> tuple[str, str]:
    """What accuracy an attack left, and the highest of any epoch."""
    models = f"{row.victims} model{'s' * (row.victims > 1)}"
    parts = [span(row.accuracy, 100, 1), models]
    parts += [f"{100 * row.highest.value:.1f} % after the best epoch"] if row.highest.n else []
    return f"{row.attack} left {100 * row.accuracy.value:.1f} % of clean test accuracy", ", ".join(filter(None, parts))


def subject(row: Row) -> str:
    """What the outcomes of a row are of."""
    return {"backdoor": "triggered images", "availability": "test images wrong"}.get(row.goal, "targets")


_SUBJECTS = {"backdoor": "triggered images", "availability": "all test images"}
_GOALS = {"backdoor": "for a backdoor", "availability": "for availability"}


def all_subjects(rows: Sequence[Row]) -> str:
    """What the outcomes of several rows are of.

    >>> all_subjects([])
    'targets'
    """
    goals = {row.goal for row in rows}
    if len(goals) == 1 and (goal := goals.pop()) in _SUBJECTS:
        return _SUBJECTS[goal]
    others = "; ".join(f"{_GOALS[goal]}, of {_SUBJECTS[goal]}" for goal in _SUBJECTS if goal in goals)
    return f"targets ({others})" if others else "targets"


def subjects(row: Row) -> str:
    """What the independent cases of a row are."""
    return "targets" if row.goal == "misclassify" else "poisons"


def aim(row: Row) -> str:
    """What the attack of a row is about."""
    return {"backdoor": "backdoor", "availability": "accuracy"}.get(row.goal, "chosen targets")


def _units(row: Row) -> str:
    if row.success.n == row.trials:
        return ""
    cases = f"{row.trials} {'case' if row.trials == 1 else 'cases'}"
    return f" in {cases}" if row.triggered else f" outcomes of {cases}"


def standing(row: Row) -> str:
    """The verdict in a word: shown, weak (only against no attack), margins, open, alone (no control).

    Judged with all comparisons of the table considered (Holm).
    """
    control = row.against
    if control is None:
        return "alone"
    if control.shown:
        return "shown" if control.name == "random-noise" else "weak"
    return "margins" if control.margin_shown else "open"


def _conclusion(control: Versus) -> str:
    name = "its control" if control.name == "random-noise" else "no attack (random noise was not run here)"
    if control.shown:
        return f"beats {name}."
    few = _too_few(control)
    hint = f" ({few})" if few else ""
    name += f" among {control.comparisons} comparisons" if control.paired.shown and not few else ""
    if control.margin_shown:
        return f"success not shown to beat {name}, but margins are higher ({_margin_text(control)}){hint}."
    return f"not shown to beat {name}{hint}."


def _too_few(control: Versus) -> str:
    """What to say of numbers that cannot show even a perfect success; nothing where they can."""
    pairs, comparisons = control.paired.pairs, control.comparisons
    if not control.exact:
        return "two models on each side are the fewest that show anything" if pairs < 2 else ""
    fewest = fewest_pairs(comparisons)
    if pairs < FEWEST_PAIRS:
        return f"{pairs} paired cases cannot show anything; {fewest} is the fewest{_for(comparisons)}"
    return f"{pairs} paired cases are too few{_for(comparisons)}; {fewest} is the fewest" if pairs < fewest else ""


def _for(comparisons: int) -> str:
    return f" for {comparisons} comparisons" if comparisons > 1 else ""


def _margin_text(versus: Versus) -> str:
    """Mean paired difference of margins with its p."""
    return f"{signed(versus.margin.difference.value, 2)} logits, {p_texts(versus.margin.p, versus.margin_holm)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- defences --------------------------------------------------------------------------------------------------------


def defense_lines(rows: Sequence[Row]) -> list[str]:
    """One line per defence and place: what the static and the adaptive attacker achieve, what it removes, its cost."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.defense != "none":
            groups.setdefault((_varying(row, rows, "scenario", "data", "model"), row.defense), []).append(row)
    return [
        f"{name}{f' ({context})' if context else ''}: {'; '.join(_defense_parts(found, rows))}."
        for (context, name), found in groups.items()
    ]


def _defense_parts(found: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    attacks = [row for row in found if not row.control]
    parts = [effect(row, access(row, rows), dose(row, rows)) for row in attacks]
    known = {row.cell.static for row in attacks if row.adaptive}
    unmet = dict.fromkeys(row.attack for row in attacks if not row.adaptive and row.cell.static not in known)
    if unmet:
        parts.append("only the static attacker was run" + (f" for {', '.join(unmet)}" if known else ""))
    parts += [caught(row, dose(row, rows)) for row in attacks if row.detection and row.detection.recall]
    clean = next((row.detection for row in found if row.detection and row.attack == "no-attack"), None)
    if clean is not None:
        parts.append(f"drops {share_text(clean.false_alarms)} of clean data")
    certified = next((row for row in found if row.certificate and row.attack == "no-attack"), None)
    certified = certified or next((row for row in found if row.certificate), None)
    if certified is not None and certified.certificate is not None:
        share, radius = percent(certified.certificate.share), certified.certificate.median
        parts.append(
            f"certifies {share} % of answers against one replaced image or more (median radius {radius:g} rows)"
        )
    return [*parts, cost_text(found)]


def share_text(share: Mean) -> str:
    """A mean share as a percentage with its interval, where it has one; of few fits it would leave 0 to 100 %."""
    if share.low is None or share.high is None:
        return f"{100 * share.value:.1f} %"
    low, high = max(share.low, 0.0), min(share.high, 1.0)
    return f"{100 * share.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def caught(row: Row, dose: str = "") -> str:
    """What a filter found of an attack's poisons, and how much else it dropped."""
    at = f" at {dose}" if dose else ""
    found, poisons = row.detection, f"{'adaptive ' * row.adaptive}{row.attack} poisons{at}"
    if found is None or found.recall is None:
        return f"drops no rows under {row.attack}"
    text = f"finds {percent(found.recall.share)} % of the {poisons} ({span(found.recall)}) among {found.removed:,.0f}"
    precise = f", of which {percent(found.precision.share)} % are poison" if found.precision else ""
    return f"{text} rows removed{precise}"


def effect(row: Row, access: str = "", dose: str = "") -> str:
    """Whether a defence helps against one attack: its success with and without, paired."""
    means = ", ".join(filter(None, (access, "adapting" if row.adaptive else "")))
    name = f"{row.attack}{f' at {dose}' if dose else ''}{f' ({means})' if means else ''}"
    bare = row.versus.get("undefended")
    if bare is None:
        return f"{name} was not run without it" + (f" ({percent(row.success.share)} % with)" if row.success.n else "")
    numbers = f"{percent(bare.success.share)} % → {percent(row.success.share)} %"
    stronger = f"makes {name} stronger"
    if row.goal == "availability":  # what counts is what is left, and a defence that costs accuracy leaves less
        numbers = f"accuracy {percent(1 - bare.success.share)} % → {percent(1 - row.success.share)} %"
        stronger = f"leaves less accuracy under {name}"
    if bare.shown:
        return f"helps against {name} ({numbers}, {p_texts(bare.paired.p, bare.holm)})"
    if bare.worse_shown:
        return f"{stronger} ({numbers}, {p_texts(bare.worse.p, bare.worse_holm)})"
    numbers += f", {p_texts(bare.paired.p, bare.holm)}"
    if bare.margin_shown:
        fall = f"{abs(bare.margin.difference.value):.2f} logits, {p_texts(bare.margin.p, bare.margin_holm)}"
        return f"no difference in success shown against {name} ({numbers}), though margins fall ({fall})"
    return f"no difference shown against {name} ({numbers})"


def priced(row: Row) -> bool:
    """Whether the accuracy that a row lost is the price of its defence, and not what the attacker wanted."""
    return row.attack == "no-attack" or row.goal != "availability"


def cost_text(rows: Sequence[Row]) -> str:
    """What a defence costs in clean accuracy, measured on unattacked data where that was run."""
    found = [row for row in rows if row.cost is not None and priced(row)]
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
