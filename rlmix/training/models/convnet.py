"""Small convolutional nets whose training steps take a few milliseconds on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import nn

WIDTHS = (16, 32)
GROUPS = 4
BATCHNORM_WIDTHS = (16, 32, 64)
LENET_WIDTHS = (8, 16)
LENET_HIDDEN = 64


def convnet(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return two 3x3 convolutions of stride 2 with GroupNorm and a mean over the pixels: [B, C, H, W] -> [B, classes].

    Has no buffers, so that it can be stacked by `torch.func.vmap`.
    """
    return convolutions(channels, num_classes, WIDTHS, (2, 2), functools.partial(nn.GroupNorm, GROUPS))


def convnet_batchnorm(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return three 3x3 convolutions with BatchNorm and a mean over the pixels: [B, C, H, W] -> [B, classes].

    The first two have stride 2. Batch normalisation is that of Ioffe and Szegedy 2015,
    https://arxiv.org/abs/1502.03167.
    """
    return convolutions(channels, num_classes, BATCHNORM_WIDTHS, (2, 2, 1), nn.BatchNorm2d)


def convolutions(
    channels: int,
    num_classes: int,
    widths: Sequence[int],
    strides: Sequence[int],
    norm: Callable[[int], nn.Module],
) -> nn.Sequential:
    """Return normalised 3x3 convolutions with ReLU, a mean over the pixels, and a linear layer.

    Args:
        channels: of the images.
        num_classes: of the logits.
        widths: channels of each convolution.
        strides: of each convolution.
        norm: gives the normalisation of so many channels.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in zip((channels, *widths[:-1]), widths, strides, strict=True):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False), norm(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def lenet(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return two 5x5 convolutions with pooling and two linear layers, nothing normalised: [B, C, H, W] -> [B, classes].

    In the manner of LeCun, Bottou, Bengio, Haffner 1998 (https://doi.org/10.1109/5.726791, Section II-B), with ReLU
    and maximum pooling. Sides of at least 4 pixels.
    """
    first, second = LENET_WIDTHS
    return nn.Sequential(
        nn.Conv2d(channels, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * (height // 4) * (width // 4), LENET_HIDDEN),
        nn.ReLU(),
        nn.Linear(LENET_HIDDEN, num_classes),
    )
