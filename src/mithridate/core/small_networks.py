"""Built-in networks without BatchNorm: the smooth LeNet that gradient inversion is measured on, and a perceptron."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


def lenet(classes: int, channels: int = 3, size: int = 32, width: int = 12) -> nn.Sequential:
    """Three 5x5 convolutions with sigmoids and one Linear: all derivatives exist, and no unit is ever off.

    Its initial weights, uniform between -0.5 and 0.5, are those on which reconstruction from gradients was first shown;
    they are large enough that the gradient says much. It learns from them if the rate suits the images: with momentum
    0.9, 0.3 for digits and 0.02 for CIFAR-10, where sigmoids saturate at 0.1 and nothing is learnt.

    Args:
        classes: Number of classes K.
        channels: Channels C of the images.
        size: Shorter side of the images in pixels.
        width: Channels of all three convolutions.

    Returns:
        A module from images [B, C, H, W] in [0, 1] to logits [B, K].

    Reference: Zhu, Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. arXiv 1906.08935, section 4. Deviation:
    oblong images are averaged to squares in front of the Linear.

    >>> sum(p.numel() for p in lenet(10).parameters())
    15826
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (inputs, stride) in enumerate(((channels, 2), (width, 2), (width, 1)), start=1):
        parts[f"block{block}"] = nn.Sequential(nn.Conv2d(inputs, width, 5, stride=stride, padding=2), nn.Sigmoid())
        size = -(-size // stride)
    network = nn.Sequential(
        OrderedDict(**parts, square=_Square(size), flatten=nn.Flatten(), linear=nn.Linear(width * size**2, classes))
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.5, 0.5)
    return network


def mlp(classes: int, channels: int = 3, size: int = 32, width: int = 128) -> nn.Sequential:
    """Two hidden layers with ReLU: the network whose first layer gives an image away exactly.

    Weights stay at PyTorch's default.

    Args:
        classes: Number of classes K.
        channels: Channels C of the images.
        size: Shorter side of the images in pixels; oblong images are averaged to squares of it.
        width: Units of both hidden layers.

    Returns:
        A module from images [B, C, H, W] in [0, 1] to logits [B, K].

    >>> sum(p.numel() for p in mlp(10, channels=1, size=8).parameters())
    26122
    """
    return nn.Sequential(
        OrderedDict(
            square=_Square(size),
            flatten=nn.Flatten(),
            block1=nn.Sequential(nn.Linear(channels * size**2, width), nn.ReLU()),
            block2=nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            linear=nn.Linear(width, classes),
        )
    )


class _Square(nn.Module):
    """Averages an oblong image to a square; a square one passes as it is, and costs nothing."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] == (self.side, self.side):
            return images
        return functional.adaptive_avg_pool2d(images, self.side)

    def extra_repr(self) -> str:
        return str(self.side)
