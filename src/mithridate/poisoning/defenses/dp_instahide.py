"""DP-InstaHide: train on noisy means of several images, and say what is private about that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from mithridate.core.learners import Mixed
from mithridate.core.mixing import NoisyMix
from mithridate.core.sampling import Groups, Shuffled
from mithridate.core.schema import name_of
from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind, changed

Drawn = Literal["groups", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class DPInstaHide(Defense):
    """Train on means of `k` images with Laplace noise, clipped to [0, 1], and on the means of their labels.

    The fit carries a guarantee of differential privacy for replacing one image, with public labels. Read its number:
    for images of C x H x W pixels whose noise leaves them legible it is astronomically large, since one image can
    differ from another in every pixel. A single mixture of 4 CIFAR-10 images with scale 16/255 has an epsilon of some
    12,000, and training uses two million of them. So what the defence does against poison is measured, not explained by
    epsilon. How it follows is in `mithridate.core.privacy`.

    Images are augmented by the recipe before they are mixed. Normalisation is by fixed numbers where it was by the
    data's. An attacker who crafts through it mixes inside batches, as the poison is no whole number of groups.

    Reference: Borgnia, Geiping, Cherepanova, Fowl, Gupta, Ghiasi, Huang, Goldblum, Goldstein. "DP-InstaHide: Provably
    Defusing Poisoning and Backdoor Attacks with Differentially Private Data Augmentations". 2021. arXiv 2103.02079.
    Deviations: equal weights; labels are public and without noise, so that amplification by sampling is counted inside
    classes; mixtures are drawn afresh for each step; ``shuffled`` has a bound of its own.

    Raises:
        ValueError: A setting out of range, or a recipe whose batches are already drawn in a way of their own.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = DPInstaHide(k=2, noise=0.5)(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> fitted.guarantees[0].values["epsilon"] > 0
    True
    """

    kind: ClassVar[Kind] = "sampler"
    k: int = 4
    """Images per mixture."""
    noise: float = 16 / 255
    """Parameter b of the Laplace noise in pixels of [0, 1]; its deviation is the root of two times that."""
    sampler: Drawn = "groups"
    """groups: independent groups of k from the whole set, the setting of the theorem; a batch reads k times as many
    images. shuffled: every image once per epoch, mixed inside its batch."""

    def __post_init__(self) -> None:
        if self.sampler not in get_args(Drawn):
            raise ValueError(f"dp-instahide sampler is {self.sampler!r}; use one of {', '.join(get_args(Drawn))}")
        self._mix()  # says what is wrong with a setting before any training

    def __call__(self, learner: Learner) -> Learner:
        plain = changed(learner, self)
        recipes = plain.recipes if isinstance(plain, Mixed) else (plain,)
        if any(
            recipe.sampler != Shuffled() or any(isinstance(one, NoisyMix) for one in recipe.transforms)
            for recipe in recipes
        ):
            raise ValueError(
                f"{name_of(self)} says how batches are drawn, and so does what came before it; use one of the two"
            )
        defended = [
            replace(
                recipe,
                sampler=Groups(k=self.k) if self.sampler == "groups" else Shuffled(),
                transforms=(*recipe.transforms, self._mix()),
                normalize="fixed" if recipe.normalize == "data" else recipe.normalize,
            )
            for recipe in recipes
        ]
        return Mixed(tuple(defended)) if isinstance(plain, Mixed) else defended[0]

    def seen_by_attacker(self, learner: Learner) -> Learner:
        """Returns the defence with mixing inside batches: a batch of poison is no whole number of groups."""
        return replace(self, sampler="shuffled")(learner)

    def _mix(self) -> NoisyMix:
        return NoisyMix(k=self.k, scale=self.noise, grouped=self.sampler == "groups")
