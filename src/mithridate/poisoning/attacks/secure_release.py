"""Secure release: images whose training gradient points to where clean images are classified wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mithridate.core.ensemble import in_mode
from mithridate.core.gradient_rules import trainable
from mithridate.core.gradients import cosine_slope
from mithridate.core.states import EVALUATION_BATCH
from mithridate.poisoning.release import GradientRelease, Judge


@dataclass(frozen=True, kw_only=True)
class SecureRelease(GradientRelease):
    """Align the training gradient of each batch with one that makes the clean batch come out wrong.

    That one is of the reverse cross-entropy, -log(1 - p), where p is the probability of the true class. Models are
    trained on clean images and stay as they are, so batches do not depend on each other and new images can be published
    as they come.

    Reference: Fowl, Chiang, Goldblum, Geiping, Bansal, Czaja, Goldstein. "Preventing Unauthorized Use of Proprietary
    Data: Poisoning for Secure Dataset Release". 2021. arXiv 2103.02683. Deviations: the reverse cross-entropy is
    averaged over all images of the batch (the reference code reads one row of the logits for all); the batch that is
    to come out wrong is the clean batch itself; a step is a share of what the ball allows; 100 steps and 1 restart.

    >>> SecureRelease(steps=50).batch
    512
    """

    label: ClassVar[str] = "gradient alignment"

    def judge(self, model: nn.Module, images: Tensor, labels: Tensor) -> Judge:
        return aligned(wrongness(model, images, labels))


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns -log(1 - p) of each image, [B], where p is the softmax probability of its label; stable at both ends.

    Args:
        logits: [B, K].
        labels: [B] int64.

    >>> reverse_cross_entropy(torch.tensor([[0.0, 0.0], [90.0, 0.0]]), torch.tensor([0, 0])).tolist()
    [0.6931471824645996, 90.0]
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)


def wrongness(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Returns the parameter gradient of the summed reverse cross-entropy in eval mode: against it, labels get unlikely.

    Its length does not matter to a cosine.
    """
    parameters = list(trainable(model).values())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for part, known in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        with in_mode(model, train=False), torch.enable_grad():
            loss = reverse_cross_entropy(model(part), known).sum()
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
    return total


def aligned(goal: Sequence[Tensor]) -> Judge:
    """Judges a gradient by 1 minus its cosine with another."""

    def judge(gradient: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        value, slope = cosine_slope(gradient, goal)
        return 1 - value, list(torch._foreach_neg(slope))

    return judge
