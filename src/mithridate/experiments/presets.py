"""Recipes and audits that are known to work, as functions that return plain values. Numbers have reasons.

A preset is a starting point to copy and change (``dataclasses.replace``), not a mode: nothing else looks at its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mithridate.core.balls import Linf, Patch
from mithridate.core.learners import Mixed
from mithridate.core.schedules import OneCycle
from mithridate.core.schema import nearest
from mithridate.core.sources import DataSource, source
from mithridate.core.training import Learner, Recipe
from mithridate.core.transforms import Flip, Shift
from mithridate.experiments.panels import Panel
from mithridate.experiments.scenarios import at_home, usual_threat
from mithridate.poisoning.attacks.badnets import BadNets
from mithridate.poisoning.attacks.poison_frogs import PoisonFrogs
from mithridate.poisoning.attacks.witches_brew import WitchesBrew
from mithridate.poisoning.defenses.mixup import Mixup
from mithridate.poisoning.defenses.partition_vote import PartitionVote
from mithridate.poisoning.defenses.spectral_signatures import SpectralSignatures
from mithridate.poisoning.goals import Backdoor
from mithridate.poisoning.threat import ThreatModel

# --- recipes ---------------------------------------------------------------------------------------------------------


def digits_recipe() -> Recipe:
    """Returns how `convnet` is trained on the 8 x 8 digits: about 98 % accuracy after 20 epochs of 16 steps.

    >>> digits_recipe().epochs
    20
    """
    return Recipe(
        model="convnet",
        epochs=20,  # 30 gain less than half a point
        batch_size=64,  # 16 steps per epoch; with 125 the parts of a vote (100 images) would learn nothing
        learning_rate=0.1,
        transforms=(Shift(),),  # one pixel; no flip, a mirrored 2 is no 2
        precision="fp32",  # layers this small gain nothing from bf16
    )


def small_recipe() -> Recipe:
    """Returns "CIFAR-10, small": `convnet`, about 62 % accuracy from 500 images per class.

    >>> small_recipe().batch_size
    125
    """
    return Recipe(
        model="convnet",  # 71k parameters: about 50 core-seconds a victim
        epochs=40,  # the poisoning literature's usual number, with its x 0.1 at 3/8, 5/8 and 7/8
        batch_size=125,  # 5,000 images: 40 equal batches, and as close to the usual 128 as that allows
        learning_rate=0.1,
        weight_decay=5e-4,
        transforms=(Flip(), Shift()),  # four pixels of 32
    )


def fast_recipe(recipe: Recipe | None = None) -> Recipe:
    """Returns a recipe in 12 epochs: one rise and one fall of the learning rate in place of 40 epochs with three drops.

    Three times as fast; docs/results.md has the accuracies of both, and which attacks work against both. The papers'
    numbers are about their recipes, so this one is for first looks and large grids.

    Reference: Smith, Topin. "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
    2018. arXiv 1708.07120.

    >>> fast_recipe(small_recipe()).epochs, small_recipe().epochs
    (12, 40)
    """
    return replace(
        Recipe() if recipe is None else recipe,
        epochs=12,  # 8 cost another point or two of accuracy on CIFAR-10
        learning_rate=0.3,  # as good as 0.2, better than 0.1
        schedule=OneCycle(peak=0.25),
    )


RECIPES: dict[str, Callable[[Recipe], Recipe]] = {"paper": lambda recipe: recipe, "fast": fast_recipe}
"""What --recipe makes of a preset's recipe."""


def small_source(path: str | Path) -> DataSource:
    """Returns the data of "CIFAR-10, small": the first 500 training images of each class, the whole test set."""
    return source(path, per_class=500)


# --- audits ----------------------------------------------------------------------------------------------------------


def digits_audit(recipe: Recipe | None = None) -> list[Panel]:
    """Returns what `mithridate audit` runs without arguments: at most three minutes on two cores.

    Three attacks chosen so that one sees what poison can and cannot do on 8 x 8 digits: a patch backdoor works, feature
    collision on frozen features works, gradient matching from scratch is weak in so small a setting.
    """
    recipe = digits_recipe() if recipe is None else recipe
    return [
        Panel(
            attack=BadNets(),  # 2 x 2 pixels in a corner, labels changed
            threat=replace(BadNets.threat, budget=0.02, ball=Patch(area=0.1), goal=Backdoor()),  # 20 of 1,000 images
            scenario=at_home(BadNets(), recipe),
            defenses=(
                (Mixup(),),  # known not to stop patches
                (SpectralSignatures(contamination=0.02),),  # told the true share, as the paper assumes
                (PartitionVote(parts=10),),  # 100 images a part: 11 or more leave too few to learn from
            ),
            trials=9,  # the fewest that show 9 of 9 against 0 of 9 as one of this audit's seven comparisons
            clean_victims=3,  # an interval for accuracy needs two or more
        ),
        Panel(
            attack=PoisonFrogs(steps=400),  # 1,000 succeed no more often here, 150 less often
            threat=PoisonFrogs.threat,  # one image, changed without bound but for the paper's penalty
            scenario=at_home(PoisonFrogs(), recipe),
            defenses=((SpectralSignatures(contamination=0.02),),),
            trials=20,  # a trial costs a second: features are trained once
            clean_victims=3,
        ),
        Panel(
            attack=WitchesBrew(steps=100, surrogates=2),  # more steps lower the loss, not the success, at this size
            threat=ThreatModel(budget=0.05, ball=Linf(eps=32 / 255)),  # half of the intended class; less shows nothing
            scenario=at_home(WitchesBrew(), recipe),
            trials=6,
            clean_victims=3,
        ),
    ]


def small_audit(recipe: Recipe | None = None) -> list[Panel]:
    """Returns the standard small setting: gradient matching against `convnet` on 500 images per class of CIFAR-10."""
    recipe = small_recipe() if recipe is None else recipe
    return [
        Panel(
            attack=WitchesBrew(
                steps=250, surrogates=2
            ),  # the paper's steps; two nets, since one overfits its own weights
            threat=ThreatModel(budget=0.02, ball=Linf(eps=16 / 255)),  # 100 of 5,000 images
            scenario=at_home(WitchesBrew(), recipe),
            defenses=((Mixup(),), (SpectralSignatures(contamination=0.02),)),
            trials=20,  # power .58 / .87 / .98 at a true success of 30 / 40 / 50 %
            clean_victims=8,
        )
    ]


def general_audit(learner: Learner | None = None) -> list[Panel]:
    """Returns an audit of data and a learner that nothing is known about: one attack of each kind at its paper's dose.

    Where the user's own code trains, defences that change a recipe and attacks on frozen features are left out.
    """
    learner = Recipe() if learner is None else learner
    wrapping = ((SpectralSignatures(),), (PartitionVote(),))
    changing = ((Mixup(),),) if isinstance(learner, (Recipe, Mixed)) else ()
    attacks = (BadNets(), PoisonFrogs(), WitchesBrew()) if isinstance(learner, Recipe) else (BadNets(), WitchesBrew())
    return [
        Panel(
            attack=attack,
            threat=usual_threat(attack),
            scenario=(place := at_home(attack, learner)),
            defenses=wrapping if place.pretrain is not None else (*changing, *wrapping),  # mixing images would mean
            # to compute frozen features again at every step
            trials=9 if isinstance(attack, BadNets) else 20,
        )
        for attack in attacks
    ]


class Preset(NamedTuple):
    """An audit by name."""

    recipe: Callable[[], Recipe]
    panels: Callable[[Recipe | None], list[Panel]]
    per_class: int | None
    """Training images kept of each class; None: all."""


PRESETS: dict[str, Preset] = {
    "digits": Preset(digits_recipe, digits_audit, None),
    "small": Preset(small_recipe, small_audit, 500),
    "general": Preset(Recipe, general_audit, None),
}
"""By the name people type."""


def preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        ValueError: No such preset; the message names the nearest one.

    >>> preset("small").per_class
    500
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
