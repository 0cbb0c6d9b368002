"""Boxes as products of intervals along the two sides."""

from __future__ import annotations

import torch
from torch import Tensor


def interval(first: Tensor, last: Tensor, size: int) -> Tensor:
    """Return 1.0 at the pixels first <= i < last: int64 [B] twice -> float32 [B, size]."""
    pixels = torch.arange(size, device=first.device)
    return ((pixels >= first.unsqueeze(1)) & (pixels < last.unsqueeze(1))).float()


def centred(centre: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return [first, last) of an interval centre -/+ side // 2, clipped to the image (CutMix, Eq. 2).

    Args:
        centre: int64 [B] in [0, size).
        side: int64 [B] in [0, size].
        size: pixels along this side of the image.

    Returns:
        Two int64 [B] with 0 <= first <= last <= size.
    """
    half = side // 2
    return (centre - half).clamp(0, size), (centre + half).clamp(0, size)
