"""Transfer grids: one attack from every surrogate to every victim in every scenario, as one call and one heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mithridate.core.data import ImageData
from mithridate.core.engines import Workers
from mithridate.core.sources import DataSource
from mithridate.core.training import Learner
from mithridate.experiments.audit import Audit, run_audit, source_of
from mithridate.experiments.panels import Panel, plan_audit
from mithridate.experiments.scenarios import BLACK, TRAINING, Scenario, scenario, usual_threat
from mithridate.experiments.trial import Trial
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.threat import ThreatModel

FOLDER = Path("runs/transfer")
"""Where results go unless told otherwise."""


def transfer_grid(
    attack: Attack,
    victims: Sequence[Learner],
    train: ImageData | DataSource,
    test: ImageData | None = None,
    *,
    surrogates: Sequence[Learner] | None = None,
    scenarios: Sequence[str] = tuple(TRAINING),
    threat: ThreatModel | None = None,
    trials: int = 20,
    clean_victims: int = 8,
    seed: int = 0,
    out: str | Path = FOLDER,
    workers: Workers = 1,
    device: str = "cpu",
) -> Audit:
    """Measures how far poison carries: from each surrogate to each victim in each scenario, on the same cases.

    Args:
        attack: What crafts the poison.
        victims: How the attacked models are trained, one recipe per architecture.
        train: Training images, or a data source that brings test images too.
        test: Test images.
        surrogates: What the attacker trains, `Mixed` recipes included; None: the victims' recipes.
        scenarios: "from-scratch", "fine-tuning", "transfer".
        threat: The dose; None: that of the attack's paper.
        trials: Cases per cell, the same ones in every cell.
        clean_victims: Models trained on clean data, shared by all cases.
        seed: First seed of the cases.
        out: Results folder. The same call resumes.
        workers: As for `audit`.
        device: Where models run.

    Returns:
        The table, and a report whose heat map has surrogates down and victims by scenario across.

    Raises:
        ValueError: No victims, no such scenario, or data that no trial could run with; found before any training.
        StudyErrors: Some trials failed; the others are finished.

    >>> import tempfile
    >>> from mithridate import BadNets, Digits, Recipe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = transfer_grid(
    ...         BadNets(),
    ...         [Recipe(model="mlp", epochs=1)],
    ...         Digits(train=100),
    ...         scenarios=["from-scratch"],
    ...         trials=1,
    ...         clean_victims=1,
    ...         out=folder,
    ...     )
    >>> sorted({row.model for row in done.table.rows})
    ['mlp']
    """
    place = scenario(scenarios[0], victims[0]) if victims and scenarios else None
    if place is None:
        raise ValueError("a transfer grid needs at least one victim and one scenario")
    panel = Panel(
        attack=attack,
        threat=usual_threat(attack) if threat is None else threat,
        scenario=place,
        trials=trials,
        clean_victims=clean_victims,
    )
    study = plan_transfer(
        panel, source_of(train, test), victims=victims, surrogates=surrogates, scenarios=scenarios, seed=seed
    )
    return run_audit(study, out, workers=workers, device=device)


def plan_transfer(
    panel: Panel,
    data: DataSource,
    *,
    victims: Sequence[Learner],
    surrogates: Sequence[Learner] | None = None,
    scenarios: Sequence[str] = tuple(TRAINING),
    seed: int = 0,
) -> list[Trial]:
    """Returns the trials of a transfer grid: every surrogate against every victim in every scenario, with controls.

    Where surrogate and victim are the same learner, the attacker has what the scenario gives it: the victim's features,
    or from scratch its architecture. Any other surrogate is a black box, with weights of its own.

    Args:
        panel: The attack, its dose and how much is run of it; its own scenario is not used.
        data: Where the images come from.
        victims: How the attacked models are trained, one recipe per architecture.
        surrogates: What the attacker trains, `Mixed` recipes included; None: the victims' recipes.
        scenarios: Names as in `mithridate.experiments.scenarios.TRAINING`.
        seed: First seed: cases are the same in every cell.

    Raises:
        ValueError: No such scenario.
    """
    return plan_audit(
        [
            replace(panel, scenario=_access(name, victim, surrogate))
            for name in scenarios
            for victim in victims
            for surrogate in (victims if surrogates is None else surrogates)
        ],
        data,
        seed=seed,
    )


def _access(name: str, victim: Learner, surrogate: Learner) -> Scenario:
    return scenario(name, victim) if surrogate == victim else scenario(name + BLACK, victim, surrogate)
