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


def resnet8(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return a residual net of 8 layers with BatchNorm for images of 8 to 64 pixels: [B, C, H, W] -> [B, num_classes].

    Three stages of one block, of 8, 16 and 32 channels; torchvision's blocks.

    Source: He, Zhang, Ren, Sun 2016, https://arxiv.org/abs/1512.03385, Section 4.2 (6n + 2 layers with n = 1, at half
    the width).
    """
    from torchvision.models.resnet import BasicBlock

    widths = (8, 16, 32)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    for fan_in, fan_out in zip((widths[0], *widths), widths, strict=False):
        stride = 1 if fan_in == fan_out else 2
        shortcut = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out))
        layers.append(BasicBlock(fan_in, fan_out, stride, shortcut if stride == 2 else None))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))
