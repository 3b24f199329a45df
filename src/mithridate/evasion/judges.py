"""Attacks of other libraries on the same images and in the same ball, so that theirs and ours stand side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.adapters import auto_attack_model, foolbox_model
from mithridate.core.balls import L2, Linf
from mithridate.core.ensemble import Ensemble
from mithridate.core.extras import extra
from mithridate.core.schema import name_of
from mithridate.evasion.attack import Attacked, Evasion


@dataclass(frozen=True, kw_only=True)
class Foreign(Evasion):
    """An attack of another library. What it returns is looked at again here."""

    listed: ClassVar[bool] = False

    def found(self, model: nn.Module, images: Tensor, moved: Tensor, labels: Tensor, wanted: Tensor | None) -> Attacked:
        """What the model makes of moved images; those outside the ball are taken back."""
        kept = torch.where(self.ball.contains(images, moved)[:, None, None, None], moved, images)
        with torch.no_grad():
            answers = Ensemble([model]).logits(kept)[0].argmax(1)
        return Attacked(kept, answers != labels if wanted is None else answers == wanted, 0, 0)


@dataclass(frozen=True, kw_only=True)
class FoolboxPGD(Foreign):
    """PGD of foolbox, with the steps of ours: a quarter of eps, from a random start.

    Reference: Rauber, Zimmermann, Bethge, Brendel. "Foolbox Native". JOSS 5(53), 2020.

    Raises:
        TypeError: A ball that is neither Linf nor L2.
    """

    steps: int = 20

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        foolbox: Any = extra("foolbox", "judges", "foolbox")
        kinds = {Linf: foolbox.attacks.LinfPGD, L2: foolbox.attacks.L2PGD}
        if type(self.ball) not in kinds or not isinstance(self.ball, (Linf, L2)):
            raise TypeError(f"foolbox is asked for the balls linf and l2, and not {name_of(self.ball)}")
        eps = self.ball.eps
        attack = kinds[type(self.ball)](abs_stepsize=eps / 4, rel_stepsize=None, steps=self.steps, random_start=True)
        aim = labels if wanted is None else foolbox.criteria.TargetedMisclassification(wanted)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
            _, moved, _ = attack(foolbox_model(model), images, aim, epsilons=eps * (1 - 1e-6))  # it rounds in float32
        return self.found(model, images, moved, labels, wanted)


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Foreign):
    """AutoAttack's standard evaluation: APGD on cross-entropy and towards classes, FAB, Square.

    Reference: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
    Attacks". ICML 2020. arXiv 2003.01690.

    Raises:
        TypeError: A ball that is neither Linf nor L2.
    """

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        library: Any = extra("autoattack", "judges", "AutoAttack")
        if wanted is not None or not isinstance(self.ball, (Linf, L2)):
            raise TypeError("AutoAttack is asked for any wrong class in the balls linf and l2")
        norm = "Linf" if isinstance(self.ball, Linf) else "L2"
        seed = int(torch.randint(2**31, (1,), generator=rng))
        judge = library.AutoAttack(
            auto_attack_model(model), norm=norm, eps=self.ball.eps, seed=seed, verbose=False, device=str(images.device)
        )
        with torch.random.fork_rng():
            moved = judge.run_standard_evaluation(images.contiguous(), labels, bs=len(images))
        return self.found(model, images, moved, labels, wanted)


JUDGES: dict[str, type[Foreign]] = {"foolbox": FoolboxPGD, "autoattack": AutoAttack}
"""By the name people type."""


def spoken(attack: Evasion) -> str:
    """Returns the name of an attack as people type it.

    >>> spoken(FoolboxPGD())
    'foolbox'
    """
    judges: dict[type[Evasion], str] = {kind: name for name, kind in JUDGES.items()}
    return judges.get(type(attack), name_of(attack).rpartition(":")[2])
