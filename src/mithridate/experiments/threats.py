"""What an attacker may do, has and wants, in words: read from the JSON of a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mithridate.experiments.cells import access_of, scenario_of
from mithridate.experiments.labels import Settings, model_of, setting
from mithridate.experiments.statistics import percent


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
    if name == "sum":
        return " + ".join(bound(part) for part in ball["balls"])
    if name == "linf":
        return f"Linf {ball['eps'] * 255:.3g}/255"
    if name == "l2":
        return f"L2 {ball['eps']:.3g}"
    if name == "patch":
        return f"patch of {percent(ball['area'])} % of the image"
    if name == "recolor":
        return f"colours by {percent(ball['eps'])} %"
    if name == "moved":
        return f"warp by {ball['pixels']:.3g} pixels"
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
    "recolor": "the colour of a pixel by at most {} % of the range in brightness and in each of two colour axes (YUV)",
    "moved": "only so that a pixel shows what the image has within {:.3g} pixels of it (a warp)",
    "any-image": "to any image at all",
}


def threat_sentences(trial: Settings, budget: Budget) -> list[str]:
    """The threat model of a cell as a short text."""
    threat = trial["threat"]
    ball, goal = threat.get("ball") or {}, threat.get("goal") or {}
    images = f"{100 * max(budget.limit, budget.share):.3g} % of the training images"
    count = f" (here {budget.count:,.0f} of {budget.train:,})" if budget.train and budget.count else ""
    source = _POISON_CLASS.get(str(threat.get("poison_class")), str(threat.get("poison_class", "any class")))
    labels = "may also change their labels" if threat.get("relabel") else "leaves their labels as they are"
    return [
        f"The attacker may replace up to {images}{count}, taken from {source}, and change them {_change(ball)}.",
        f"The attacker {labels}, sees the training data and {_knowledge(trial)}, but not the victim's random seed.",
        _goal_sentence(goal, threat.get("targets", 1), threat.get("case")),
    ]


def _change(ball: Settings) -> str:
    """How images may be changed."""
    name = ball.get("type", "")
    if name == "sum":
        return ", and on top of that ".join(_change(part) for part in ball["balls"])
    amounts = {
        "linf": lambda: f"{ball['eps'] * 255:.3g}",
        "l2": lambda: ball["eps"],
        "patch": lambda: percent(ball["area"]),
        "recolor": lambda: percent(ball["eps"]),
        "moved": lambda: ball["pixels"],
    }
    how = _BOUND.get(name, setting(ball) or "without a stated bound")
    return how.format(amounts[name]()) if name in amounts else how


def _knowledge(trial: Settings) -> str:
    """What the attacker has of the victim's training."""
    surrogate, access = trial.get("surrogate"), access_of(trial)
    if access == "black box":
        return f"guesses the architecture ({model_of(surrogate or {})})"
    knows = f"guesses the recipe ({model_of(surrogate)})" if surrogate else "knows the recipe"
    if access == "white box":
        return f"{knows} and the weights that the victim starts from"
    return knows if scenario_of(trial) == "from scratch" else f"{knows}, but trains the weights it starts from anew"


def _goal_sentence(goal: Settings, targets: int, case: Settings | None) -> str:
    if goal.get("type") == "backdoor":
        return _backdoor_sentence(goal)
    if goal.get("type") == "availability":
        return (
            "Goal: the model gets test images wrong, whatever it takes them for (availability: data that are of no use "
            "to train on)."
        )
    if goal.get("type", "misclassify") == "misclassify":
        if case:
            count = len(case.get("target_rows") or case.get("target_files") or ())
            what = "one image" if count == 1 else f"{count} images" if count else "images"
            return f"Goal: {what} named in advance, classified as {setting(case.get('intended'))}."
        what = "one test image" if targets == 1 else f"{targets} test images"
        return f"Goal: {what}, drawn before any training, classified as a wrong class that was also drawn in advance."
    return f"Goal: {setting(goal)}."


def _backdoor_sentence(goal: Settings) -> str:
    wanted, sources, limit = goal.get("intended"), goal.get("sources", "all"), goal.get("limit")
    answer = "one class drawn in advance" if wanted is None else f"class {wanted}"
    answer = "the class after its own" if goal.get("all_to_all") else answer
    whose = {"all": "", "drawn": " of one class, drawn in advance,"}.get(sources, f" of class {sources}")
    may = f" The trigger may change an image {_change(limit)}." if limit else ""
    marked = f"every test image{whose} that carries the attacker's trigger"
    return f"Goal: {marked} is classified as {answer} (a backdoor).{may}"
