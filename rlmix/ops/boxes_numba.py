"""Boxes of CutMix as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops import rng, rng_numba
from rlmix.ops.compiled import array


def clipped(where: Tensor, lam: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows, the columns and the shares of the pixels of published boxes."""
    count = len(lam)
    rows, columns = (np.empty((count, length), np.float32) for length in size)
    shares = np.empty(count, np.float32)
    _clip(array(where), array(lam), rows, columns, shares)
    return torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(shares)


def drawn(keys: Tensor, group: int, alone: bool, size: tuple[int, int]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Draw partners and published boxes for lam ~ Beta(1, 1), which is uniform.

    Args:
        keys: int64 [G].
        group: b, rows of a group.
        alone: whether each row has a box of its own; else there is one for each group.
        size: (H, W).

    Returns:
        The partners, int64 [G*b, 1]; the share of the pixels that are theirs, float32 [G*b, 1]; and which rows and
        columns lie in the boxes, float32 [G*b, H] and [G*b, W].
    """
    boxes = group if alone else 1
    numbers = rng_numba.numbers(keys, ((rng.PARTNER, (group,)), (rng.LAM, (boxes, 2)), (rng.CENTRE, (2, boxes))))
    partners = rng_numba.order(numbers, group)
    rows, columns = (np.empty((partners.size, length), np.float32) for length in size)
    shares = np.empty((partners.size, 1), np.float32)
    _draw(numbers, boxes, partners, rows, columns, shares)
    return (
        torch.from_numpy(partners.reshape(-1, 1)),
        torch.from_numpy(shares),
        (torch.from_numpy(rows), torch.from_numpy(columns)),
    )


@numba.njit(cache=True, nogil=True)
def _draw(numbers: Any, boxes: int, partners: Any, rows: Any, columns: Any, shares: Any) -> None:
    """Write boxes and shares, and count the partners, which are counted within their groups, in the whole batch."""
    groups, group = partners.shape
    for number in range(groups):
        for row in range(group):
            at, box = number * group + row, row % boxes
            partners[number, row] += number * group
            lam, centre = np.float32(numbers[number, group + 2 * box]), group + 2 * boxes + box
            shares[at, 0] = _box(numbers[number, centre], numbers[number, centre + boxes], lam, rows[at], columns[at])


@numba.njit(cache=True, nogil=True)
def _clip(where: Any, lam: Any, rows: Any, columns: Any, shares: Any) -> None:
    for box in range(len(lam)):
        shares[box] = _box(where[0, box], where[1, box], lam[box], rows[box], columns[box])


@numba.njit(inline="always")
def _box(down: Any, across: Any, lam: Any, rows: Any, columns: Any) -> Any:
    """Write the rows and the columns of one box around a place; return its share of the pixels."""
    side = np.sqrt(np.float32(1.0) - lam)
    covered = np.float32(_span(down, side, rows)) * np.float32(_span(across, side, columns))
    return covered / np.float32(len(rows) * len(columns))


@numba.njit(inline="always")
def _span(where: Any, side: Any, seen: Any) -> int:
    """Write 1.0 where the box lies along one side, 0.0 elsewhere; return how many ones these are."""
    size = len(seen)
    centre, half = int(np.floor(where * size)), int(np.floor(side * np.float32(size / 2)))
    first, last = max(centre - half, 0), min(centre + half, size)
    for pixel in range(size):
        seen[pixel] = np.float32(1.0) if first <= pixel < last else np.float32(0.0)
    return max(last - first, 0)
