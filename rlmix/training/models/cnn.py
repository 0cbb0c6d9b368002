"""A small convolutional net for small images."""

from __future__ import annotations

from torch import nn

WIDTHS = (32, 64, 64)
GROUPS = 8


def cnn(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return three 3x3 convolutions and a mean over the pixels: [B, C, H, W] -> [B, num_classes].

    GroupNorm instead of BatchNorm: nothing depends on the other images of a batch, there are no buffers to carry, and
    the net can be stacked by `torch.func.vmap`. Meant for 8x8 to 64x64; the size is not built in.
    """
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False)):
        stride = 1 if index == 0 else 2
        layers += [
            nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(GROUPS, fan_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], num_classes))
