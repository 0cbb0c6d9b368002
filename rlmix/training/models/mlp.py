"""A multilayer perceptron on pixels."""

from __future__ import annotations

from torch import nn

HIDDEN = (128, 128)


def mlp(channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return two hidden layers of 128 ReLU units: [B, C, H, W] -> [B, num_classes].

    Has no buffers and no randomness, so that it can be stacked by `torch.func.vmap`.
    """
    sizes = (channels * height * width, *HIDDEN)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip(sizes, HIDDEN, strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], num_classes))
