"""Standard: several attacks, each on what the ones before it left standing; the worst case of every image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mithridate.core.balls import Linf
from mithridate.evasion.attack import Attacked, Evasion
from mithridate.evasion.attacks.apgd import APGD
from mithridate.evasion.attacks.square import Square


@dataclass(frozen=True, kw_only=True)
class Standard(Evasion):
    """APGD on cross-entropy, APGD towards each of the likeliest wrong classes, and random squares, in this order.

    Reference: the idea is AutoAttack's: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of
    Diverse Parameter-Free Attacks". ICML 2020. arXiv 2003.01690. Deviations: FAB is left out; squares only in Linf.

    >>> [type(part).__name__ for part in Standard().parts(classes=10)]
    ['APGD', 'APGD', 'Square']
    """

    steps: int = 100
    """Steps of each APGD."""
    targets: int = 9
    """Wrong classes that the second one aims at."""
    queries: int = 1000
    """Of the random squares, per image."""

    def parts(self, classes: int) -> list[Evasion]:
        """Returns the attacks in their order; a ratio of logits needs at least four classes."""
        found: list[Evasion] = [APGD(ball=self.ball, steps=self.steps)]
        if classes >= 4:
            found.append(APGD(ball=self.ball, steps=self.steps, loss="dlr", targets=min(self.targets, classes - 1)))
        elif classes > 2:
            found.append(APGD(ball=self.ball, steps=self.steps, loss="dlr"))
        else:
            found.append(APGD(ball=self.ball, steps=self.steps, loss="cw"))
        if isinstance(self.ball, Linf):
            found.append(Square(ball=self.ball, queries=self.queries))
        return found

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: torch.Generator,
        *,
        wanted: Tensor | None = None,
    ) -> Attacked:
        with torch.no_grad():
            classes = model.eval()(images[:1]).shape[1]
        found = Attacked(images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device), 0, 0)
        for part in self.parts(classes):
            rows = (~found.fooled).nonzero()[:, 0]
            if not len(rows):
                break
            part = replace(part, targets=0) if wanted is not None and isinstance(part, APGD) else part
            one = part.perturb(model, images[rows], labels[rows], rng, wanted=None if wanted is None else wanted[rows])
            found.images[rows], found.fooled[rows] = one.images, one.fooled
            found = found._replace(forwards=found.forwards + one.forwards, gradients=found.gradients + one.gradients)
        return found
