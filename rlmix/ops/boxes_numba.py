"""`rlmix.ops.boxes.clipped` as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops.compiled import array


def clipped(where: Tensor, lam: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows, the columns and the shares of the pixels of published boxes."""
    count = len(lam)
    rows, columns = (np.empty((count, length), np.float32) for length in size)
    shares = np.empty(count, np.float32)
    _clip(array(where), array(lam), rows, columns, shares)
    return torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(shares)


@numba.njit(cache=True, nogil=True)
def _clip(where: Any, lam: Any, rows: Any, columns: Any, shares: Any) -> None:
    pixels = np.float32(rows.shape[1] * columns.shape[1])
    for box in range(len(lam)):
        side = np.sqrt(np.float32(1.0) - lam[box])
        down, across = _span(where[0, box], side, rows[box]), _span(where[1, box], side, columns[box])
        shares[box] = np.float32(down) * np.float32(across) / pixels


@numba.njit(inline="always")
def _span(where: Any, side: Any, seen: Any) -> int:
    """Write 1.0 where the box lies along one side, 0.0 elsewhere; return how many ones these are."""
    size = len(seen)
    centre, half = int(np.floor(where * size)), int(np.floor(side * np.float32(size / 2)))
    first, last = max(centre - half, 0), min(centre + half, size)
    for pixel in range(size):
        seen[pixel] = np.float32(1.0) if first <= pixel < last else np.float32(0.0)
    return max(last - first, 0)
