"""What to be careful about in a study: doubts that follow from its numbers, and warnings that its trials gave.

Every kind is explained here and, in the same words, in ``docs/warnings.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments import words
from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.statistics import LEVEL, percent

if TYPE_CHECKING:
    from mithridate.experiments.table import Row

LOUD = 0.05
"""A control whose interval lies above this rate moves targets by itself."""
LARGE_EPSILON = 10.0
"""From here on a promise of privacy lets the odds of an outcome change by more than exp(10), 22,000 times."""
COSTLY = 0.10
"""Accuracy lost, as a share, from which a defence has mostly broken the model."""


@dataclass(frozen=True)
class Kind:
    """A kind of caution, explained."""

    name: str
    meaning: str
    action: str
    pattern: str = ""
    """Warnings of trials: what their text contains. Empty where the report finds it in the numbers."""


class Caution(NamedTuple):
    """What was found, and its explanation."""

    text: str
    kind: Kind


FROM_NUMBERS = (
    Kind(
        "no-control",
        "Nothing can be shown of an attack that nothing was run beside: targets may move without it.",
        "Run the same cases with `random-noise` and `no-attack`.",
    ),
    Kind(
        "no-noise-control",
        "Without random noise nobody can tell the attack from changing images at random by as much.",
        "Run the same cases with `random-noise`.",
    ),
    Kind(
        "unpaired-cases",
        "Only cases that were also run with the control are compared; the others count for the rate alone.",
        "Run the control on the missing cases, or compare the rates of equal cases only.",
    ),
    Kind(
        "few-cases",
        f"Even if every case succeeds and no control does, the exact test cannot reach {LEVEL}; and of a single model "
        "there is no spread to compare accuracies with.",
        f"Take {fewest_pairs()} cases or more (`--plan` says what a number of them can show); to compare accuracies, "
        "two models or more of each kind.",
    ),
    Kind(
        "few-for-many",
        "The more settings are compared, the smaller a p-value has to be. With so few cases even a perfect success is "
        "not small enough on its own, so “not shown” says nothing here.",
        "Take more cases or compare fewer settings at once.",
    ),
    Kind(
        "many-comparisons",
        "Of many idle attacks some seem to work by chance. “Shown” is therefore judged after Holm's correction, which "
        "keeps the chance of even one false “shown” in the whole study at the level of a single test; the "
        "table gives both p-values.",
        "Judge by “shown”, not by single p-values. A setting picked for its small p needs a new study of its own.",
    ),
    Kind(
        "loud-control",
        "Its targets lie near a class boundary, or the model is weak; or labels are changed, and any mark on the "
        "images does as a trigger. What a control moves needs no attack.",
        "Compare attacks with this rate, not with 0.",
    ),
    Kind(
        "static-only",
        "The poison was made without knowing the defence. That is the defence's easiest day: it usually looks better "
        "than against an attacker who adapts to it.",
        "Add adaptive cells before trusting the defence. Until then read its numbers as an upper bound of its use.",
    ),
    Kind(
        "white-box",
        "The attacker had the weights that the victim starts from: the attack's easiest case. Other features may "
        "resist it.",
        "Run it with features of another seed (grey box) and another architecture (black box) as well.",
    ),
    Kind(
        "black-box",
        "The attacker trained another architecture than the victim's. If it fails, the surrogate may be the reason "
        "and not the victim's strength.",
        "Run the same attack with a surrogate of the victim's own kind, and read the two together.",
    ),
    Kind(
        "weak-model",
        "Clean, undefended models are nearer to guessing than to perfect. Many of their answers are wrong without an "
        "attack, and their targets move easily.",
        "Train longer or on more data; until then compare with the controls only, and look at the targets that clean "
        "models get right.",
    ),
    Kind(
        "costly-defense",
        "A defence that takes this much accuracy has partly broken the model; fewer successes may come from that.",
        "Compare defences at equal accuracy, or count a success only among targets that its clean models get right.",
    ),
    Kind(
        "trusted-rows",
        "Some clean images were held out for a defence that needs them. A defence that had some knows more than one "
        "that had none.",
        "State their number beside the result.",
    ),
    Kind(
        "empty-guarantee",
        "At so large an epsilon a proof of differential privacy excludes nothing that a poisoner or an eavesdropper "
        "could wish for. Whatever the defence does here is an observation about these attacks, not a guarantee.",
        "Do not call the training private. More noise, fewer steps or smaller images lower epsilon.",
    ),
)
FROM_TRIALS = (
    Kind(
        "plain-to-see",
        "The bound lets the poison change images so much that anyone who looks at the data notices. (`Linf(eps=8)` "
        "instead of `Linf(eps=8 / 255)` is an error, not a warning.)",
        "Do not call it hidden; take eps of 16/255 or less for that.",
        r"plain to see",
    ),
    Kind(
        "diverged",
        "The loss was no longer a finite number. A victim that learnt nothing cannot be attacked either.",
        "Lower `learning_rate` and run the trial again.",
        r"diverged",
    ),
    Kind(
        "out-of-memory",
        "Memory ran short and work was cut into smaller pieces: the same objective, but not bit-identical to larger "
        "pieces, since rounding and the random draws of the augmentation differ.",
        "Nothing, or run all trials of a study on machines with as much memory.",
        r"out of memory",
    ),
    Kind(
        "other-versions",
        "Some results were made with other versions of the libraries; differences between old and new cells may come "
        "from that alone.",
        "Use one environment for a study, or a new folder.",
        r"results made with",
    ),
    Kind(
        "damaged",
        "A stored file could not be read and was made again. The result is as if it had never been stored.",
        "Nothing; look at the disk if it happens often.",
        r"damaged",
    ),
    Kind(
        "targets-without-poison",
        "There were fewer poisons than targets, and each poison is for one target: some targets were not attacked.",
        "Allow a larger budget or aim at fewer targets.",
        r"targets get none",
    ),
    Kind(
        "trained-again",
        "A model that your own code returned cannot be copied, so it was trained anew wherever it was needed: slower, "
        "and the same only if that code repeats itself.",
        "Return a plain `torch.nn.Module`, without its trainer.",
        r"cannot be copied",
    ),
    Kind(
        "not-resumable",
        "A setting has no name in another process, so the study cannot be resumed or repeated from its files.",
        "Write the function in a file and give it as `package.module:function`.",
        r"not resumable",
    ),
    Kind(
        "unsolved",
        "The equations of `analytic-linear` have no exact solution: a defence changed the gradient, the batch held "
        "something else than was assumed, or the labels are wrong.",
        "Read its images as a least-squares answer; where the labels were recovered, run it with known ones as well.",
        r"solved with a relative error",
    ),
)
OTHER = Kind("other", "Raised while a trial ran, by this program or a library; shown as it came.", "Read the message.")
KINDS = (*FROM_NUMBERS, *FROM_TRIALS, OTHER)
"""Every kind of caution there is."""
_KIND = {kind.name: kind for kind in KINDS}


def kind_of(text: str) -> Kind:
    """The kind of a warning that a trial gave.

    >>> kind_of("out of memory; going on with pieces of 25").name
    'out-of-memory'
    """
    return next((kind for kind in FROM_TRIALS if re.search(kind.pattern, text, re.IGNORECASE)), OTHER)


def cautions(rows: Sequence[Row]) -> list[Caution]:
    """Doubts that follow from the numbers first, then what the trials warned of."""
    found = [Caution(text, _KIND[name]) for name, look in _LOOKS.items() for text in look(rows)]
    raised: dict[str, list[str]] = {}
    for row in rows:
        for text in row.warnings:
            raised.setdefault(text, []).append(row.attack)
    return found + [Caution(f"{text} ({_names(names)})", kind_of(text)) for text, names in sorted(raised.items())]


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _attacks(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.control and row.success.n]


def _by_attack(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the name of their attack."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.attack, []).append(row)
    return found


def _with(rows: Iterable[Row]) -> str:
    """The defences of some rows as an ending of a sentence."""
    names = list(dict.fromkeys("no defence" if row.defense == "none" else row.defense for row in rows))
    return f" ({', '.join(names)})" if names != ["no defence"] else ""


# --- what follows from the numbers: each returns the sentences it finds --------------------------------------------


def _no_control(rows: Sequence[Row]) -> list[str]:
    alone = _by_attack(row for row in _attacks(rows) if row.against is None)
    return [f"No control beside {name}{_with(found)}." for name, found in alone.items()]


def _no_noise(rows: Sequence[Row]) -> list[str]:
    without = _by_attack(row for row in _attacks(rows) if row.against and row.against.name != "random-noise")
    return [f"No random-noise control beside {name}{_with(found)}." for name, found in without.items()]


def _unpaired(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.attack}, {row.budget.bound}{_with([row])}: {row.against.paired.pairs} of {row.trials} cases have a "
        f"{row.against.name} control."
        for row in _attacks(rows)
        if row.against and row.against.exact and row.against.paired.pairs < row.trials
    ]


def _few(rows: Sequence[Row]) -> list[str]:
    made, compared = [], [(row, row.against) for row in _attacks(rows) if row.against]
    for exact, fewest, what in ((True, fewest_pairs(), "paired cases"), (False, 2, "models on each side")):
        few = _by_attack(row for row, other in compared if other.exact == exact and other.paired.pairs < fewest)
        made += [f"Fewer than {fewest} {what} for {name}{_with(found)}." for name, found in few.items()]
    return made


def _few_for_many(rows: Sequence[Row]) -> list[str]:
    """Cells whose perfect success passes a single test, but not the strictest step of Holm's correction."""
    tested = [(row, row.against) for row in _attacks(rows) if row.against and row.against.exact]
    few: dict[int, dict[str, list[Row]]] = {}
    for row, other in tested:
        if fewest_pairs() <= other.paired.pairs < fewest_pairs(other.comparisons):
            few.setdefault(other.comparisons, {}).setdefault(row.attack, []).append(row)
    return [
        f"With {settings} settings compared, {fewest_pairs(settings)} paired cases are the fewest that show a perfect "
        f"success on its own: too few for {'; '.join(name + _with(rows) for name, rows in found.items())}."
        for settings, found in few.items()
    ]


def _many(rows: Sequence[Row]) -> list[str]:
    tests = max((row.against.comparisons for row in rows if row.against), default=0)
    return [f"{tests} attack settings were compared with their controls."] if tests > 1 else []


def _loud(rows: Sequence[Row]) -> list[str]:
    aimed = [row for row in rows if row.goal != "availability"]  # elsewhere it is what clean models get wrong
    loud = _by_attack(row for row in aimed if row.control and row.success.n and row.success.low > LOUD)
    made = []
    for name, found in loud.items():
        where = [f"{percent(row.success.share)} % with {_defense(row)}" for row in found]
        made.append(f"{name} moves targets by itself: {', '.join(dict.fromkeys(where))}.")
    return made


def _defense(row: Row) -> str:
    return "no defence" if row.defense == "none" else row.defense


def _static_only(rows: Sequence[Row]) -> list[str]:
    attacks = [row for row in _attacks(rows) if row.defense != "none"]
    met = {row.cell.static for row in attacks if row.adaptive}
    static = _by_attack(row for row in attacks if row.cell.static not in met)
    return [
        f"Only the static attacker was run against {', '.join(dict.fromkeys(row.defense for row in found))}: "
        f"{name} did not know of it."
        for name, found in static.items()
    ]


def _white(rows: Sequence[Row]) -> list[str]:
    return [
        f"{name} was run with white-box access only."
        for name, found in _by_attack(_attacks(rows)).items()
        if {row.access for row in found} == {"white box"}
    ]


def _black(rows: Sequence[Row]) -> list[str]:
    found = _by_attack(row for row in _attacks(rows) if row.access == "black box")
    pairs = {name: sorted({(row.surrogate, row.model) for row in cells}) for name, cells in found.items()}
    return [
        f"{name} is a black-box attack: crafted on {', '.join(dict.fromkeys(s for s, _ in met))}, "
        f"victim {', '.join(dict.fromkeys(v for _, v in met))}."
        for name, met in pairs.items()
    ]


def _weak(rows: Sequence[Row]) -> list[str]:
    weak: dict[str, str] = {}
    for row in rows:
        classes = [len((result.get("data") or {}).get("classes") or ()) for result in row.cell.results]
        chance = 1 / max([*classes, 2])
        clean = row.attack == "no-attack" and row.defense == "none" and row.accuracy.n
        if clean and row.accuracy.value < (1 + chance) / 2:
            weak[words.place(row)] = f"{100 * row.accuracy.value:.1f} %, guessing {100 * chance:.3g} %"
    return [f"Clean models are right on {accuracy} ({place})." for place, accuracy in weak.items()]


def _costly(rows: Sequence[Row]) -> list[str]:
    costs: dict[str, list[float]] = {}
    for row in rows:
        if row.defense != "none" and row.cost is not None and row.cost.n and words.priced(row):
            costs.setdefault(row.defense, []).append(row.cost.value)
    return [
        f"{name} costs {100 * fmean(values):.1f} points of accuracy."
        for name, values in costs.items()
        if fmean(values) >= COSTLY
    ]


def _trusted(rows: Sequence[Row]) -> list[str]:
    counts = sorted({int(row.settings.get("trusted") or 0) for row in rows} - {0})
    return [f"{', '.join(f'{count:,}' for count in counts)} clean images were held out for the defender."] * bool(
        counts
    )


def _empty(rows: Sequence[Row]) -> list[str]:
    large: dict[str, float] = {}
    for row in rows:
        for guarantee in row.guarantees:
            epsilon = (guarantee.get("values") or {}).get("epsilon")
            if epsilon is not None and epsilon >= LARGE_EPSILON:
                large[row.defense] = max(epsilon, large.get(row.defense, 0.0))
    return [f"{name} is private with epsilon {epsilon:,.4g} only." for name, epsilon in large.items()]


_LOOKS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "no-control": _no_control,
    "no-noise-control": _no_noise,
    "static-only": _static_only,
    "few-cases": _few,
    "few-for-many": _few_for_many,
    "unpaired-cases": _unpaired,
    "loud-control": _loud,
    "weak-model": _weak,
    "costly-defense": _costly,
    "white-box": _white,
    "black-box": _black,
    "trusted-rows": _trusted,
    "empty-guarantee": _empty,
    "many-comparisons": _many,
}
"""In the order in which a report gives them."""
