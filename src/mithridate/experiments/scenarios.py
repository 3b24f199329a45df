"""Scenarios: how victims come to their weights, and what of them the attacker has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from mithridate.core.learners import Mixed
from mithridate.core.schema import name_of, nearest
from mithridate.core.training import Learner, Recipe
from mithridate.poisoning.attack import Attack
from mithridate.poisoning.threat import ThreatModel


class Scenario(NamedTuple):
    """How victims come to their weights, and what of them the attacker has: settings of a trial."""

    learner: Learner
    """Trains the victims."""
    pretrain: Recipe | None = None
    """Trains features first, on the half of the rows that is never poisoned."""
    tuned: Literal["head", "all"] = "head"
    """What victims train on these features."""
    surrogate: Learner | None = None
    """What the attacker trains; None: the victims' learner."""
    knows_features: bool = True
    """Whether the attacker has the victims' own features."""

    def public(self) -> Scenario:
        """Returns the scenario without the attacker's means: what controls are run in, shared by all attackers."""
        return self._replace(surrogate=None, knows_features=True)


def transfer(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """Returns (pretrain, learner) for transfer learning: features from one half of the rows, a new head on the other.

    >>> from mithridate.experiments.presets import small_recipe
    >>> pretrain, head = transfer(small_recipe())
    >>> pretrain == small_recipe(), head.transforms
    (True, ())
    """
    head = replace(
        recipe,
        transforms=(),  # features are then computed once and the head is solved to convergence
        weight_decay=1e-5,  # a head far from interpolation would ignore a single poison, and real heads are close to it
    )
    return recipe, head


def fine_tuning(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """Returns (pretrain, learner) for fine-tuning: all weights, with a tenth of the learning rate, for half as long.

    >>> fine_tuning(Recipe(epochs=40, learning_rate=0.1))[1].epochs
    20
    """
    return recipe, replace(recipe, learning_rate=recipe.learning_rate / 10, epochs=max(1, recipe.epochs // 2))


def _from_scratch(learner: Learner) -> Scenario:
    if learner.recipe is not None and learner.recipe.start_from is not None:
        raise ValueError("the recipe starts from given weights, so nothing is from scratch: transfer or fine-tuning")
    return Scenario(learner)


def _transfer(learner: Learner) -> Scenario:
    recipe = _recipe(learner, "transfer")
    if recipe.start_from is not None:
        return Scenario(replace(transfer(recipe)[1], trainable="head"))
    pretrain, head = transfer(recipe)
    return Scenario(head, pretrain)


def _fine_tuning(learner: Learner) -> Scenario:
    recipe = _recipe(learner, "fine-tuning")
    if recipe.start_from is not None:
        return Scenario(replace(recipe, trainable="all"))
    pretrain, tuned = fine_tuning(recipe)
    return Scenario(tuned, pretrain, tuned="all")


def _recipe(learner: Learner, name: str) -> Recipe:
    if not isinstance(learner, Recipe):
        raise TypeError(
            f"{name} starts from weights, which only a Recipe can do; {name_of(learner)} is measured from-scratch"
        )
    return learner


TRAINING: dict[str, Callable[[Learner], Scenario]] = {
    "from-scratch": _from_scratch,
    "fine-tuning": _fine_tuning,
    "transfer": _transfer,
}
"""How victims train, by the name people type. With pretrained features the attacker has the victims' own (white box);
from scratch it has the architecture and trains its own weights (grey box)."""
GREY, BLACK = "-grey-box", "-black-box"
SCENARIOS = tuple(
    name + access for name in TRAINING for access in ("", GREY, BLACK) if name + access != "from-scratch" + GREY
)
"""All names that people may type."""


def scenario(name: str, learner: Learner, surrogate: Learner | None = None) -> Scenario:
    """Returns the scenario of that name for a learner.

    ``-grey-box`` after the name: the attacker's features come from another seed; ``-black-box``: the attacker trains
    another architecture.

    Args:
        name: One of `SCENARIOS`.
        learner: How victims are trained.
        surrogate: What the attacker trains; None: the learner itself, or for a black box `another_architecture`.

    Raises:
        ValueError: No such scenario (the message names the nearest one), or given weights that the attacker lacks.
        TypeError: A scenario that starts from weights, for a learner that is no recipe.

    >>> from mithridate.experiments.presets import digits_recipe
    >>> scenario("transfer", digits_recipe()).pretrain == digits_recipe()
    True
    >>> scenario("from-scratch-black-box", digits_recipe()).surrogate.model
    'convnet-wide'
    """
    if name not in SCENARIOS:
        raise ValueError(f"no scenario is called {name!r}; {nearest(name, SCENARIOS)}")
    train = TRAINING[name.removesuffix(GREY).removesuffix(BLACK)]
    found, theirs = train(learner), None if surrogate is None else _trained(train, surrogate)
    found = found._replace(surrogate=theirs)
    if not name.endswith((GREY, BLACK)):
        return found
    if found.learner.recipe is not None and found.learner.recipe.start_from is not None and surrogate is None:
        raise ValueError(
            f"{name}: the victims start from given weights; give the attacker's as surrogate= (a recipe with its own "
            "start_from)"
        )
    if name.endswith(GREY):
        return found._replace(knows_features=False)
    return found._replace(surrogate=theirs or another_architecture(found.learner), knows_features=False)


def _trained(train: Callable[[Learner], Scenario], surrogate: Learner) -> Learner:
    """What the attacker trains in a scenario; each recipe of a mixture as it would be alone."""
    if isinstance(surrogate, Mixed):
        return Mixed(tuple(train(recipe).learner for recipe in surrogate.recipes))  # type: ignore[arg-type]
    return train(surrogate).learner


def another_architecture(learner: Learner) -> Recipe:
    """Returns the recipe with another network: `convnet-wide`, or `convnet` where that is the victim's.

    Raises:
        TypeError: The learner trains with code of its own: nothing says what is another architecture.
    """
    recipe = learner.recipe
    if recipe is None:
        raise TypeError(f"{name_of(learner)} trains with code of its own; give surrogate= for a black box")
    models = [part.model for part in learner.recipes] if isinstance(learner, Mixed) else [recipe.model]
    wide = any(isinstance(model, str) and model.startswith("convnet-wide") for model in models)
    return replace(recipe, model="convnet" if wide else "convnet-wide")


def home_scenario(attack: Attack, learner: Learner | None = None) -> str:
    """Returns the scenario that an attack's paper is about: attacks on features are about fixed ones.

    A learner with given weights is fine-tuned, unless it trains a head; one with code of its own starts from scratch.

    >>> from mithridate import PoisonFrogs, WitchesBrew
    >>> home_scenario(PoisonFrogs()), home_scenario(WitchesBrew())
    ('transfer', 'from-scratch')
    """
    recipe = None if learner is None else learner.recipe
    if recipe is not None and recipe.start_from is not None:
        return "transfer" if recipe.trainable == "head" or attack.habitat == "transfer" else "fine-tuning"
    able = learner is None or isinstance(learner, Recipe)
    return attack.habitat if able else "from-scratch"


def at_home(attack: Attack, learner: Learner) -> Scenario:
    """Returns the scenario that an attack's paper is about, for a learner."""
    return scenario(home_scenario(attack, learner), learner)


def usual_threat(attack: Attack) -> ThreatModel:
    """Returns the dose of an attack's paper, in the form that fits the attack's settings.

    >>> from mithridate import BadNets
    >>> usual_threat(BadNets(clean_label=True)).relabel
    False
    """
    return attack.assumed()
