"""Losses that an attack lowers."""

from __future__ import annotations

import torch
from torch import Tensor


def carlini_wagner(logits: Tensor, labels: Tensor, kappa: float = 0.0) -> Tensor:
    """Returns how far each image is from being given its label: the best other logit minus that of the label, [B].

    Negative where the label wins; not less than -kappa, where it stops to reward a wider margin.

    Reference: Carlini, Wagner. "Towards Evaluating the Robustness of Neural Networks". IEEE S&P 2017. arXiv 1608.04644,
    f6.

    Args:
        logits: [B, K].
        labels: [B] int64, the labels that are wanted.
        kappa: margin, in logits, that is wide enough.

    >>> carlini_wagner(torch.tensor([[-3.0, -5.0], [1.0, 4.0]]), torch.tensor([0, 0]), kappa=1.0).tolist()
    [-1.0, 3.0]
    """
    index = labels[:, None]
    others = logits.scatter(1, index, -torch.inf).amax(1)
    return (others - logits.gather(1, index)[:, 0]).clamp_min(-kappa)
