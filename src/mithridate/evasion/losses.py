"""What an attack raises, one number per image: cross-entropy, the margin, the margin over the spread of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mithridate.core.losses import carlini_wagner

Loss = Literal["ce", "cw", "dlr"]
"""Cross-entropy; margin of the best other logit; difference of logits ratio."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, [B]; its gradient vanishes where the model is very sure."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best other logit minus that of the label, [B]; positive where the model is wrong.

    Reference: Carlini, Wagner. "Towards Evaluating the Robustness of Neural Networks". IEEE S&P 2017. arXiv 1608.04644.
    """
    return carlini_wagner(logits, labels, kappa=torch.inf)


def logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin divided by the distance of the largest from the third largest logit, [B]: scale and shift do nothing.

    Reference: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-Free
    Attacks". ICML 2020. arXiv 2003.01690, equation 6.

    Raises:
        ValueError: Fewer than three classes.

    >>> round(float(logits_ratio(torch.tensor([[4.0, 1.0, 0.0]]), torch.tensor([0]))), 6)
    -0.75
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"dlr compares the first logit with the third, but the model has {logits.shape[1]}; use ce or cw"
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def towards(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The ratio for one wanted class, [B]: its logit minus the label's, over the spread of the largest four.

    Reference: Croce, Hein. As above, equation 7.

    Raises:
        ValueError: Fewer than four classes.

    >>> logits = torch.tensor([[4.0, 1.0, 0.0, 0.0]])
    >>> float(towards(logits, torch.tensor([0]), torch.tensor([1])))
    -0.75
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"dlr towards a class compares with the fourth logit, but there are {logits.shape[1]}; use ce or cw"
        )
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_of(logits, wanted) - _of(logits, labels)) / spread.clamp_min(1e-12)


def loss_of(name: Loss) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Returns the function of logits [B, K], labels [B], wanted classes [B] (None: any other) to what is raised [B]."""
    away = {"ce": cross_entropy, "cw": margin, "dlr": logits_ratio}[name]

    def raised(logits: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        if wanted is None:
            return away(logits, labels)
        return towards(logits, labels, wanted) if name == "dlr" else -away(logits, wanted)

    return raised


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]
