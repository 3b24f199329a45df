"""What --train-fn makes of the other options: who trains with the user's function, and what it cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mithridate.core.learners import TrainFunction
from mithridate.core.schema import resolve
from mithridate.core.training import Learner, Recipe
from mithridate.experiments.definitions import where
from mithridate.experiments.scenarios import BLACK, home_scenario
from mithridate.poisoning.attack import Attack

if TYPE_CHECKING:
    from mithridate.cli.pipelines import AuditOptions, CraftOptions

GREY_BOX, BLACK_BOX = "from-scratch", "from-scratch" + BLACK
"""Scenarios of the user's own code: the attacker trains with it as well, or a recipe of its own."""


def learner_of(options: AuditOptions | CraftOptions, names: Sequence[str]) -> TrainFunction:
    """Returns the learner that --train-fn names.

    Args:
        options: Of audit or craft, with a function.
        names: The scenarios that will be run.

    Raises:
        ValueError: It cannot be imported; or another option speaks of training that the function does on its own.
        TypeError: It is no function of a data set and a seed.
    """
    assert options.train_fn is not None
    attackers = {
        "--model": options.model,
        "--surrogate": options.surrogate,
        "--recipe fast": options.recipe == "fast" or None,
    }
    given = [name for name, value in attackers.items() if value is not None]
    if not any(name.endswith(BLACK) for name in names) and given:
        raise ValueError(
            f"{given[0]} is about the attacker's own model, but in {names[0]} the attacker trains with your function; "
            f"leave {given[0]} out, or give the attacker a model of its own: {BLACK_BOX}"
        )
    if options.model is not None and options.surrogate is not None:
        raise ValueError(
            "--train-fn trains the victims, so --model and --surrogate both name the attacker's model; leave one out"
        )
    for name, value, instead in (
        ("--epochs", options.epochs, "how long it trains is set in the function"),
        ("--start-from", options.start_from, "load the weights in the function"),
    ):
        if value is not None:
            raise ValueError(f"{name} is a setting of recipes, and --train-fn trains with code of its own: {instead}")
    if options.devices > 1:
        raise ValueError(
            "--devices shares out the batches of a recipe; a function of your own uses what devices it likes"
        )
    found = _imported(options.train_fn)
    learner = found if isinstance(found, TrainFunction) else TrainFunction(found)
    if getattr(options, "keep_models", False) and learner.model is None:
        raise ValueError(
            f"--keep-models stores weights, and nothing says how to build the module of {learner.name} around them; "
            "let --train-fn name an object learner = mithridate.learner(train, model=...)"
        )
    return learner


def _imported(text: str) -> Any:
    try:
        return resolve(text)
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        place = where(error)
        if place is None or isinstance(error.__cause__, ModuleNotFoundError):
            raise
        guard = "; it runs as a script does: put that under `if __name__ == '__main__':`"
        raise ValueError(
            f"{text} cannot be imported: {place} raised {type(error).__name__}: {error}"
            f"{guard if isinstance(error, SystemExit) else ''}"
        ) from error


def usual_scenario(attack: Attack, learner: Learner) -> str:
    """Returns the scenario of an attack that names none: one that trains no models has none of its own either."""
    if isinstance(learner, TrainFunction):
        return BLACK_BOX if getattr(attack, "surrogates", 0) else GREY_BOX
    return home_scenario(attack, learner)


def known(name: str, learner: Learner, theirs: Recipe | None) -> Recipe | None:
    """Returns what the attacker trains of its own in a scenario; None: what the victims' owner does."""
    return None if isinstance(learner, TrainFunction) and not name.endswith(BLACK) else theirs
