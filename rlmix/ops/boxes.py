"""Boxes as products of intervals along the two sides."""

from __future__ import annotations

import torch
from torch import Tensor

from rlmix.ops import compiled


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


def around(centre: Tensor, half: Tensor, size: int) -> Tensor:
    """Return what `interval` gives for `centred`, in fewer operations: 1.0 where centre - half <= i < centre + half.

    Args:
        centre: floating point [..., B], whole numbers in [0, size).
        half: floating point [B], whole numbers in [0, size].
        size: pixels along this side of the image.

    Returns:
        float32 [..., B, size].
    """
    middles = torch.arange(0.5, size, device=centre.device)
    return ((middles - centre.unsqueeze(-1)).abs_() < half.unsqueeze(-1)).float()


def clipped(where: Tensor, lam: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes of the sides `size * sqrt(1 - lam)`, centred on a pixel and clipped to the image (CutMix, Eq. 2).

    Args:
        where: float64 [2, B] in (0, 1), where along each side of the image the centre is.
        lam: float32 [B] in [0, 1].
        size: (H, W).

    Returns:
        Which rows [B, H] and which columns [B, W] lie in the box, 1.0 or 0.0, and the share of the pixels that do [B],
        all float32.
    """
    if compiled.serves(where, lam):
        seen: tuple[Tensor, Tensor, Tensor] = compiled.code("boxes_numba").clipped(where, lam, size)
        return seen
    side, (height, width) = torch.sqrt(1.0 - lam), size
    if height == width:
        rows, columns = around((where * height).floor_(), (side * (height / 2)).floor_(), height).unbind(0)
    else:
        rows, columns = (
            around((where[axis] * length).floor_(), (side * (length / 2)).floor_(), length)
            for axis, length in enumerate(size)
        )
    return rows, columns, share(rows, columns)


def share(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the share of the pixels that lie in boxes: float32 [B, H] and [B, W], 1.0 or 0.0, -> float32 [B]."""
    return rows.sum(1).mul_(columns.sum(1)).div_(rows.shape[1] * columns.shape[1])


def inside(position: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return [first, last) of an interval of `side` pixels that lies in the image as a whole.

    Args:
        position: floating point [B] in [0, 1): where among the places that the interval has; uniform numbers give each
            place equally often.
        side: int64 [B] in [0, size].
        size: pixels along this side of the image.

    Returns:
        Two int64 [B] with 0 <= first, last = first + side <= size.
    """
    first = (position * (size - side + 1)).long()
    return first, first + side


def lattice(side: Tensor, period: int, size: int) -> Tensor:
    """Return 1.0 at the first `side` pixels of every period: int64 [B] -> float32 [B, size]."""
    return (torch.arange(size, device=side.device) % period < side.unsqueeze(1)).float()


def fit(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift that show all `size` pixels of a source in [first, last), nearest neighbour.

    Pixel first + k of the image shows the source's pixel floor((first + k - shift) * scale) = (k * size) // (last -
    first). The shift lies half of the rule's smallest step before `first`, so that float32 rounding of the quotient
    cannot reach the next whole number (for sides up to 1024 pixels at least).

    Args:
        first: int64 [B].
        last: int64 [B], at least `first`; an empty interval counts as one pixel.
        size: pixels of the source along this side.

    Returns:
        scale and shift, float32 [B].
    """
    return size / (last - first).clamp_min(1).float(), first.float() - 0.5 / size
