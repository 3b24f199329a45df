"""The built-in networks, for images from 8x8 up: images [B, C, H, W] in, logits [B, K] out.

No ReLU here works in place: the gradient-matching attacks differentiate twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_POOLED = 4
"""Sides below this are not halved any more, so 8x8 images still reach the last block with 2x2 positions."""
NORM_GROUPS = 8
"""Most groups of channels that a GroupNorm normalises on their own."""

Norm = Literal["batch", "group"]
"""What comes after each convolution: BatchNorm, or GroupNorm, under which no image meets the others of its batch."""


def convnet(classes: int, channels: int = 3, size: int = 32, width: int = 16, norm: Norm = "batch") -> nn.Sequential:
    """Five 3x3 convolutions with BatchNorm: the standard small network, 71 thousand parameters.

    Args:
        classes: Number of classes K.
        channels: Channels C of the images.
        size: Shorter side of the images in pixels.
        width: Channels of the first block; all five are (1, 2, 2, 4, 4) times this.
        norm: What normalises: "batch", or "group" for training that must see each image alone (Wu, He. "Group
            Normalization". ECCV 2018. arXiv 1803.08494).

    Returns:
        A module from images [B, C, H, W] in [0, 1] to logits [B, K].

    Reference: the ConvNetBN of Huang et al. "MetaPoison". NeurIPS 2020. arXiv 2004.00225, with global average pooling
    in place of the flattening and without the poolings that a small image does not allow.

    >>> sum(p.numel() for p in convnet(10).parameters())
    70618
    """
    return _plain_network([width * factor for factor in (1, 2, 2, 4, 4)], classes, channels, size, norm)


def convnet_wide(
    classes: int, channels: int = 3, size: int = 32, width: int = 32, norm: Norm = "batch"
) -> nn.Sequential:
    """Four 3x3 convolutions, widths (1, 2, 4, 4) times `width`; otherwise as `convnet`.

    >>> convnet_wide(10)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    return _plain_network([width * factor for factor in (1, 2, 4, 4)], classes, channels, size, norm)


def resnet18(classes: int, channels: int = 3, size: int = 32, width: int = 64, norm: Norm = "batch") -> nn.Sequential:
    """ResNet-18 with the 3x3 stem used for CIFAR; stage widths are (1, 2, 4, 8) times `width`.

    Reference: He et al. "Deep Residual Learning for Image Recognition". CVPR 2016. arXiv 1512.03385. Deviations: the
    stem is one 3x3 convolution of stride 1 without pooling, and a stride is dropped where the side is below 4.

    >>> sum(p.numel() for p in resnet18(10).parameters())
    11173962
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(ConvNorm(channels, width, norm=norm), nn.ReLU())
    )
    seen = width
    for stage, factor in enumerate((1, 2, 4, 8)):
        stride = 2 if stage > 0 and size >= SMALLEST_POOLED else 1
        size = -(-size // stride)
        stages[f"stage{stage + 1}"] = nn.Sequential(
            _Residual(seen, factor * width, stride, norm), _Residual(factor * width, factor * width, 1, norm)
        )
        seen = factor * width
    return _initialised(nn.Sequential(OrderedDict(**stages, **_head(seen, classes))))


def vgg11(classes: int, channels: int = 3, size: int = 32, width: int = 64, norm: Norm = "batch") -> nn.Sequential:
    """VGG-11 with BatchNorm and one Linear, as used for CIFAR; widths are (1, 2, 4, 4, 8, 8, 8, 8) times `width`.

    Reference: Simonyan, Zisserman. "Very Deep Convolutional Networks for Large-Scale Image Recognition". ICLR 2015.
    arXiv 1409.1556, configuration A. Deviations: BatchNorm (whose shift replaces the biases of the convolutions), one
    Linear in place of three, global average pooling, and no pooling below 4 pixels except after the last block.

    >>> sum(p.numel() for p in vgg11(10).parameters())
    9228362
    """
    widths = [width * factor for factor in (1, 2, 4, 4, 8, 8, 8, 8)]
    return _plain_network(widths, classes, channels, size, norm, pooled=(1, 2, 4, 6, 8), at_the_end=True)


def mobilenet_v2(
    classes: int, channels: int = 3, size: int = 32, width: int = 32, norm: Norm = "batch"
) -> nn.Sequential:
    """MobileNetV2 with the strides used for CIFAR; `width` is the number of channels of the first convolution.

    Reference: Sandler et al. "MobileNetV2: Inverted Residuals and Linear Bottlenecks". CVPR 2018. arXiv 1801.04381,
    table 2. Deviations: the first convolution and the second stage have stride 1, a stride is dropped where the side is
    below 4, no dropout, and all widths scale with `width` (the last convolution, too) without rounding to multiples
    of 8.

    >>> sum(p.numel() for p in mobilenet_v2(10).parameters())
    2236682
    """
    scaled = {number: max(1, round(number * width / 32)) for number in (16, 24, 32, 64, 96, 160, 320, 1280)}
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(ConvNorm(channels, width, norm=norm), nn.ReLU6())
    )
    seen = width
    for stage, (expansion, number, repeats, strided) in enumerate(_MOBILENET_STAGES, start=1):
        stride = 2 if strided and size >= SMALLEST_POOLED else 1
        size = -(-size // stride)
        inputs = [seen, *[scaled[number]] * (repeats - 1)]
        blocks = [_Inverted(a, scaled[number], expansion, stride if i == 0 else 1, norm) for i, a in enumerate(inputs)]
        parts[f"stage{stage}"] = nn.Sequential(*blocks)
        seen = scaled[number]
    parts["last"] = nn.Sequential(ConvNorm(seen, scaled[1280], kernel=1, norm=norm), nn.ReLU6())
    return _initialised(nn.Sequential(OrderedDict(**parts, **_head(scaled[1280], classes))))


_MOBILENET_STAGES = (
    (1, 16, 1, False),
    (6, 24, 2, False),
    (6, 32, 3, True),
    (6, 64, 4, True),
    (6, 96, 3, False),
    (6, 160, 3, True),
    (6, 320, 1, False),
)
"""Expansion, channels, blocks, and whether the first block has stride 2."""


class ConvNorm(nn.Module):
    """A convolution without bias followed by a norm; with BatchNorm in eval mode one convolution with folded weights.

    Folding computes the same function, and gradients still reach the parameters of both. It spares the elementwise
    passes of BatchNorm, which take a large part of the time where a gradient is differentiated again.

    >>> layer = ConvNorm(3, 8).eval()
    >>> images = torch.rand(2, 3, 5, 5)
    >>> torch.allclose(layer(images), layer.norm(layer.convolution(images)), atol=1e-6)
    True
    """

    folding = True
    """Whether eval mode folds; an instance may set it to False, for code that watches what comes to its BatchNorm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs) if norm == "batch" else _group_norm(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        convolution, norm = self.convolution, self.norm
        if norm.training or not self.folding or isinstance(norm, nn.GroupNorm):
            return norm(convolution(images))
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = norm.weight * (variance + norm.eps).rsqrt()
        weight, bias = convolution.weight * scale[:, None, None, None], norm.bias - mean * scale
        return functional.conv2d(
            images, weight, bias, convolution.stride, convolution.padding, groups=convolution.groups
        )


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = next(number for number in range(min(NORM_GROUPS, channels), 0, -1) if channels % number == 0)
    return nn.GroupNorm(groups, channels)


def _head(features: int, classes: int) -> dict[str, nn.Module]:
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(features, classes)}


def _plain_network(
    widths: Sequence[int],
    classes: int,
    channels: int,
    size: int,
    norm: Norm,
    pooled: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    at_the_end: bool = False,
) -> nn.Sequential:
    """Blocks of convolution, norm, max-pool while the side allows, ReLU.

    The usual order is ReLU first. Both commute exactly, gradients too, and this way the ReLU touches a quarter.

    Args:
        widths: Channels of each block.
        classes: Number of classes K.
        channels: Channels C of the images.
        size: Shorter side of the images in pixels.
        norm: What normalises.
        pooled: Blocks with a max-pool, counted from 1.
        at_the_end: Pool the last block whatever its side: nothing but the average comes after it.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False), start=1):
        layers: list[nn.Module] = [ConvNorm(inputs, outputs, norm=norm)]
        if block in pooled and (size >= SMALLEST_POOLED or (at_the_end and block == len(widths) and size > 1)):
            layers.append(nn.MaxPool2d(2))
            size //= 2
        parts[f"block{block}"] = nn.Sequential(*layers, nn.ReLU())
    return _initialised(nn.Sequential(OrderedDict(**parts, **_head(widths[-1], classes))))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, outputs, stride=stride, norm=norm), nn.ReLU(), ConvNorm(outputs, outputs, norm=norm)
        )
        unchanged = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if unchanged else ConvNorm(inputs, outputs, kernel=1, stride=stride, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class _Inverted(nn.Module):
    """Widen by a 1x1 convolution, filter each channel alone, narrow by a 1x1 convolution; a shortcut around it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, norm: Norm) -> None:
        super().__init__()
        inner = inputs * expansion
        widen = [ConvNorm(inputs, inner, kernel=1, norm=norm), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *widen,
            ConvNorm(inner, inner, stride=stride, groups=inner, norm=norm),
            nn.ReLU6(),
            ConvNorm(inner, outputs, kernel=1, norm=norm),
        )
        self.unchanged = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        return images + self.body(images) if self.unchanged else self.body(images)


def _initialised(network: nn.Sequential) -> nn.Sequential:
    """Kaiming-normal (fan out) for convolutions; norms stay at one and zero, the Linear at PyTorch's default."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return network
