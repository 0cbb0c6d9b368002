"""torchvision's residual nets, with the stem that small images need."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

# torchvision's stem shrinks an image four times before the first block: 32x32 would enter it as 8x8.
SMALL_SIDE = 64


def resnet(depth: int, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return torchvision's ResNet: [B, C, H, W] -> [B, num_classes].

    Up to 64 pixels a side it has the stem that is usual for CIFAR (one 3x3 convolution of stride 1, no pooling).

    Source: He, Zhang, Ren, Sun 2016, https://arxiv.org/abs/1512.03385, Section 4.2 for the small stem.

    Args:
        depth: 18, 34 or 50.
        channels: of the images.
        height: of the images.
        width: of the images.
        num_classes: C.
    """
    from torchvision import models

    model = cast(Any, getattr(models, f"resnet{depth}")(weights=None, num_classes=num_classes))
    if max(height, width) <= SMALL_SIDE:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return cast(nn.Module, model)
