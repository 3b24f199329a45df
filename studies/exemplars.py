"""Many classes with few images each, for want of faces: every class is one photo, its images are views of that photo.

Views are turned, cut out and lit at random, so a model has to know the photo again. This is the task of exemplar
networks, and what face identification asks of a network in small.

Reference: Dosovitskiy, Springenberg, Riedmiller, Brox. "Discriminative Unsupervised Feature Learning with Convolutional
Neural Networks". NeurIPS 2014. arXiv 1406.6909 (surrogate classes). Deviations: views of whole photos of 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from studies.witches_brew import cifar10

PEOPLE, TRAIN, TEST = 200, 20, 10
"""Photos; views of each to train on and to test on."""


class Views:
    """A map-style data set of (image [3, 32, 32] uint8, number of the photo)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def views() -> tuple[Views, Views]:
    """Returns (train, test): views of the first photos of CIFAR-10, as many of each class."""
    photos, _ = cifar10(per_class=PEOPLE // 10).load()
    names = [f"photo {number}" for number in range(PEOPLE)]
    images = photos.floats(photos.ids)
    return tuple(  # pyright: ignore[reportReturnType]
        Views(_views(images, count, seed), torch.arange(PEOPLE).repeat_interleave(count), names)
        for seed, count in enumerate((TRAIN, TEST))
    )


def _views(photos: Tensor, count: int, seed: int) -> Tensor:
    """uint8 [N * count, 3, 32, 32]: turned by up to 20 degrees, 60 to 100 % of the side, lighter or darker."""
    rng = torch.Generator().manual_seed(seed)
    images = photos.repeat_interleave(count, 0)
    low, high = torch.tensor([[-20.0, 0.6, -0.2, -0.2, 0.7, -0.15], [20.0, 1.0, 0.2, 0.2, 1.3, 0.15]])
    angle, scale, right, down, contrast, light = (low + (high - low) * torch.rand(len(images), 6, generator=rng)).T
    turn = angle * math.pi / 180
    rows = [scale * turn.cos(), -scale * turn.sin(), right, scale * turn.sin(), scale * turn.cos(), down]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
    seen = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    middle = seen.mean((1, 2, 3), keepdim=True)
    lit = (seen - middle) * contrast.view(-1, 1, 1, 1) + middle + light.view(-1, 1, 1, 1)
    return (255 * lit.clamp(0, 1)).round().to(torch.uint8)
