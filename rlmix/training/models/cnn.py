"""A small convolutional net for small images."""

from __future__ import annotations

import functools

from torch import nn

from rlmix.training.models.convnet import convolutions

WIDTHS = (32, 64, 64)
GROUPS = 8


def cnn(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return three 3x3 convolutions and a mean over the pixels: [B, C, H, W] -> [B, num_classes].

    GroupNorm instead of BatchNorm: nothing depends on the other images of a batch, there are no buffers to carry, and
    the net can be stacked by `torch.func.vmap`. Meant for 8x8 to 64x64; the size is not built in.
    """
    return convolutions(channels, num_classes, WIDTHS, (1, 2, 2), functools.partial(nn.GroupNorm, GROUPS))
