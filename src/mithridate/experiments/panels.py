"""Panels: one attack at one dose in one scenario, with its defences; and the trials and controls that make it up."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mithridate.core.balls import Ball, Linf, Sum
from mithridate.core.schema import name_of
from mithridate.core.sources import DataSource
from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.scenarios import Scenario
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.attacks.no_attack import NoAttack
from mithridate.poisoning.attacks.random_noise import RandomNoise
from mithridate.poisoning.defense import Defense
from mithridate.poisoning.threat import ThreatModel
from mithridate.poisoning.triggers import PatchTrigger


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One attack at one dose in one scenario: what is read together, with the controls beside it."""

    attack: Attack
    """Crafts the poison."""
    threat: ThreatModel
    """What it may do: its dose."""
    scenario: Scenario
    """How the victims train, and what of it the attacker has."""
    defenses: tuple[tuple[Defense, ...], ...] = ()
    """Each entry is one stack of defences; the undefended learner is always measured too."""
    trials: int = 20
    """Cases drawn: independent targets, or for a backdoor independent poisons. 20 show a true success of 37 % or more
    in 4 of 5 studies."""
    victims: int = 1
    """Models trained on each poison."""
    clean_victims: int = 8
    """Models trained on clean data, shared by all cases."""
    adaptive: bool = False
    """Whether every defence is also met by an attacker who knows it and crafts through it."""
    trusted: int = 0
    """Clean rows held out for defences that need them."""

    def sized(self, trials: int | None, victims: int | None, clean_victims: int | None) -> Panel:
        """Returns the panel with these numbers; where they are None, and the goal asks for other ones than a panel has.

        An attack on accuracy is one poison of all images, and what differs are the models trained on it.
        """
        usual = {"trials": 1, "victims": 3, "clean_victims": 3} if self.threat.goal.wrong else {}
        given = {"trials": trials, "victims": victims, "clean_victims": clean_victims}
        return replace(self, **usual | {name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        for name in ("trials", "victims", "clean_victims"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1 is needed")


def dosed(
    panels: Iterable[Panel],
    *,
    eps: float | Sequence[float] | None = None,
    budget: float | Sequence[float] | None = None,
) -> list[Panel]:
    """Returns every panel at every dose asked for; None keeps the panel's own.

    An eps means an Linf ball. Where images carry a trigger it is what they may change besides; an attack that does
    nothing but mark them has no eps and keeps its own ball.
    """
    return list(
        dict.fromkeys(
            replace(panel, threat=_at_dose(panel.threat, one_eps, one_budget))
            for panel in panels
            for one_eps, one_budget in itertools.product(_several(eps), _several(budget))
        )
    )


def stepped(panel: Panel, of: Literal["budget", "eps"] = "budget", levels: int = 5, factor: float = 2.0) -> list[Panel]:
    """Returns the panel at geometric doses, the smallest first, its own dose the largest.

    Raises:
        ValueError: Too few levels, a factor that is none, or an attack whose images have no eps.

    >>> from mithridate.experiments.presets import digits_audit
    >>> [panel.threat.budget for panel in stepped(digits_audit()[0], levels=3)]
    [0.005, 0.01, 0.02]
    """
    if levels < 3 or factor <= 1:
        raise ValueError(f"{levels} doses, each {factor:g} times the last, are no ladder; give 3 or more, above 1")
    shares = [factor ** (level + 1 - levels) for level in range(levels)]
    if of == "budget":
        return dosed([panel], budget=[panel.threat.budget * share for share in shares])
    eps = _eps(panel.threat.ball)
    if eps is None:
        raise ValueError(
            f"{name_of(panel.attack)} changes images by no eps ({panel.threat.ball}); vary its budget (--of budget), "
            "or name an eps it may use (--eps)"
        )
    return dosed([panel], eps=[eps * share for share in shares])


def sufficient(panels: Sequence[Panel], data: DataSource) -> list[Panel]:
    """Returns the panels with enough cases that a perfect success is shown beside all that is compared with it.

    An attack on accuracy keeps its one poison: what differs there are models.

    >>> from mithridate.core.sources import Digits
    >>> from mithridate.experiments.presets import digits_audit
    >>> [panel.trials for panel in sufficient(stepped(digits_audit()[0]), Digits())]
    [10, 10, 10, 10, 10]
    """
    trials = plan_audit([replace(panel, trials=1) for panel in panels], data)
    fewest = fewest_pairs(sum(not isinstance(trial.attack, (NoAttack, RandomNoise)) for trial in trials))
    return [panel if panel.threat.goal.wrong else replace(panel, trials=max(panel.trials, fewest)) for panel in panels]


def _eps(ball: Ball) -> float | None:
    if isinstance(ball, Sum):
        return next((eps for part in ball.balls if (eps := _eps(part)) is not None), None)
    return ball.eps if isinstance(ball, Linf) else None


def _several(value: float | Sequence[float] | None) -> Sequence[float | None]:
    return [value] if value is None or isinstance(value, (int, float)) else value


def _at_dose(threat: ThreatModel, eps: float | None, budget: float | None) -> ThreatModel:
    if eps is not None:
        threat = replace(threat, ball=_sized(threat.ball, eps) if threat.goal.triggered else Linf(eps=eps))
    return threat if budget is None else replace(threat, budget=budget)


def _sized(ball: Ball, eps: float) -> Ball:
    """The ball of an attack with a trigger, its Linf part with another eps."""
    if isinstance(ball, Sum):
        return Sum(balls=tuple(_sized(part, eps) for part in ball.balls))
    return Linf(eps=eps) if isinstance(ball, Linf) else ball


def plan_audit(panels: Iterable[Panel], data: DataSource, *, seed: int = 0) -> list[Trial]:
    """Returns the trials of some panels and of the controls beside them, each once.

    Every panel gets `random-noise` under its own threat model, undefended; and `no-attack`, which needs no budget and
    so is shared by all panels with the same aim, with every defence (its accuracy is what the defence costs). Adaptive
    cells are those of attacks that train surrogates: the poison of others does not depend on any model.
    """
    panels = list(panels)
    clean: dict[Any, tuple[Panel, int, int]] = {}
    trials: list[Trial] = []
    for panel in panels:
        stacks = dict.fromkeys(((), *panel.defenses))
        trials += [trial for stack in stacks for trial in _cell(panel, data, seed, stack)]
        if panel.adaptive and getattr(panel.attack, "surrogates", 0):  # without models there is nothing to adapt
            known = [_cell(panel, data, seed, stack) for stack in stacks if stack]
            trials += [replace(trial, adaptive=True) for cell in known for trial in cell]
        control = replace(panel, scenario=panel.scenario.public())
        trials += _cell(replace(control, attack=RandomNoise(trigger=_trigger(panel))), data, seed, ())
        for stack in stacks:
            aim = (panel.threat.goal, panel.threat.targets, panel.threat.case)
            key = (control.scenario, panel.trusted, *aim, _trigger(panel), stack)
            first, cases, victims = clean.get(key, (control, 0, 0))
            clean[key] = (first, max(cases, panel.trials), max(victims, panel.clean_victims))
    for key, (panel, cases, victims) in clean.items():
        shared = replace(panel, trials=cases, victims=victims, attack=NoAttack(trigger=_trigger(panel)))
        trials += _cell(shared, data, seed, key[-1])
    return list(dict.fromkeys(trials))


def _trigger(panel: Panel) -> Any:
    """The trigger that controls put on test images: the attack's own."""
    return getattr(panel.attack, "trigger", PatchTrigger())


def _cell(panel: Panel, data: DataSource, seed: int, defenses: tuple[Defense, ...]) -> list[Trial]:
    return [
        Trial(
            data=data,
            threat=panel.threat,
            attack=panel.attack,
            **panel.scenario._asdict(),
            defenses=defenses,
            victims=panel.victims,
            trusted=panel.trusted,
            seed=seed + index,
            surrogate_seed=seed,
        )
        for index in range(panel.trials)
    ]
