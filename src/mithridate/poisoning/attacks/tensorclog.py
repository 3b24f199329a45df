"""TensorClog: images from which a trained network learns nothing more, since their training gradient is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mithridate.poisoning.release import GradientRelease, Judge


@dataclass(frozen=True, kw_only=True)
class TensorClog(GradientRelease):
    """Make the training gradient of each batch as short as possible, at the weights of a clean model.

    Weak against victims that train from scratch: what is small at the end of one training says little of another's
    beginning. It is here as a comparison.

    Reference: Shen, Zhu, Ma. "TensorClog: An Imperceptible Poisoning Attack on Deep Neural Network Applications". IEEE
    Access 7, 2019. Deviations: the ball bounds the change, where the paper penalises its visibility; a step is
    a share of what the ball allows.

    >>> TensorClog().surrogates
    1
    """

    label: ClassVar[str] = "shortening gradients"

    def judge(self, model: nn.Module, images: Tensor, labels: Tensor) -> Judge:
        return length


def length(gradient: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """Returns the Euclidean norm [] of a gradient and its derivative with respect to it.

    >>> length([torch.tensor([3.0]), torch.tensor([4.0])])
    (tensor(5.), (tensor([0.6000]), tensor([0.8000])))
    """
    found = torch.stack(torch._foreach_norm(list(gradient))).norm()
    return found, torch._foreach_div(list(gradient), found.clamp_min(1e-12))
