"""Standardized pixels as the first layer of a model."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn


@final
class Standardize(nn.Module):
    """Shift and scale each channel, so that everything outside the model sees images in [0, 1].

    Args:
        images: float [n, C, H, W], whose channels get mean 0 and standard deviation 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        # A slice at a time: float64 copies of a whole data set would not fit into memory.
        parts = torch.split(images, 4096)
        count = images.numel() / images.shape[1]
        mean = torch.stack([part.double().sum((0, 2, 3)) for part in parts]).sum(0) / count
        squares = torch.stack([part.double().square().sum((0, 2, 3)) for part in parts]).sum(0) / count
        std = (squares - mean.square()).clamp_min(1e-6).sqrt()
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, C, H, W], standardized."""
        return (images - self.mean) / self.std
