"""Adversarial poisoning: poison each batch against itself and train on it with true labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mithridate.core.poisoned import Inner, Poisoned, Split
from mithridate.poisoning.defense import Augmentation


@dataclass(frozen=True, kw_only=True)
class AdversarialPoisoning(Augmentation):
    """Poison a part of each batch against the rest of it, then train on both with true labels.

    A model that has met poison at every step of its training is moved less by what is in its data. Each step of the
    attack inside costs about two more forward and backward passes over the poisoned part. An adaptive attacker trains
    surrogates this way and crafts through the attack inside, which makes crafting as many times dearer.

    Reference: Geiping, Fowl, Somepalli, Goldblum, Moeller, Goldstein. "What Doesn't Kill You Makes You Robust(er): How
    to Adversarially Train against Data Poisoning". 2021. arXiv 2102.13624. Deviations: those of
    `mithridate.core.poisoned.Poisoned`.

    >>> from mithridate import Recipe
    >>> AdversarialPoisoning(share=0.25)(Recipe()).transforms[-1].share
    0.25
    """

    inner: Inner = "gradient-matching"
    """The attack inside: gradient-matching, squared-error, feature-collision, metapoison; patch against backdoors;
    noise."""
    eps: float = 16 / 255
    """Largest change of a pixel in [0, 1]; a patch knows no such limit."""
    steps: int = 5
    """Steps of the attack in each step of training; patches and noise take none."""
    step: float = 0.025
    """Length of such a step, in pixels of [0, 1]."""
    share: float = 0.5
    """Share of the batch that is poisoned; 0.75 is a stronger variant."""
    split: Split = "apart"
    """apart: the rest of the batch plays the targets. shuffled: all of it does."""
    patch: tuple[float, float] = (0.1, 0.4)
    """Smallest and largest side of a patch as shares of the image's."""

    def transform(self) -> Poisoned:
        return Poisoned(**asdict(self))
