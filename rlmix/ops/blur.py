"""A Gaussian blur of maps, as sums of shifted copies: the same bits whatever stands beside a map in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_blur(maps: Tensor, radius: tuple[int, int], sigma: tuple[float, float]) -> Tensor:
    """Blur maps by a Gaussian with a kernel of 2 * radius + 1 values along each side, mirrored at the borders.

    The mirror does not repeat the border itself (reflect-101), and serves sides of any length.

    Args:
        maps: float [B, h, w].
        radius: along the rows and along the columns, at least 0; 0 leaves that side as it is.
        sigma: standard deviations, above 0, in cells.

    Returns:
        [B, h, w], the dtype of `maps`.
    """
    for axis, (reach, spread) in enumerate(zip(radius, sigma, strict=True), 1):
        if reach > 0 and maps.shape[axis] > 1:
            maps = _blur_axis(maps, axis, reach, spread)
    return maps


def _blur_axis(maps: Tensor, axis: int, radius: int, sigma: float) -> Tensor:
    size = maps.shape[axis]
    heights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = heights[0] + 2.0 * sum(heights[1:])
    period = 2 * (size - 1)
    index = torch.arange(-radius, size + radius, device=maps.device) % period
    padded = maps.index_select(axis, torch.minimum(index, period - index))
    blurred = padded.narrow(axis, radius, size) * (heights[0] / total)
    pair = torch.empty_like(blurred)
    for offset in range(1, radius + 1):
        left, right = padded.narrow(axis, radius - offset, size), padded.narrow(axis, radius + offset, size)
        blurred = blurred.add_(torch.add(left, right, out=pair), alpha=heights[offset] / total)
    return blurred
