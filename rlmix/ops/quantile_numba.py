"""`rlmix.ops.quantile` as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops.blend_numba import lerp
from rlmix.ops.compiled import array


def row_quantile(values: Tensor, levels: Tensor) -> Tensor:
    """Return the quantile of each row at that row's level: float32 [B, n] and [B] -> [B]."""
    quantiles = np.empty(len(values), np.float32)
    _fill(np.sort(array(values), axis=1), array(levels), quantiles)
    return torch.from_numpy(quantiles)


@numba.njit(cache=True, nogil=True)
def _fill(ordered: Any, levels: Any, quantiles: Any) -> None:
    last = ordered.shape[1] - 1
    for row in range(len(ordered)):
        position = levels[row] * np.float32(last)
        if np.isnan(position):
            # As an index this would be anywhere.
            quantiles[row] = np.nan
            continue
        position = min(max(position, np.float32(0.0)), np.float32(last))
        below = np.floor(position)
        low, high = ordered[row, int(below)], ordered[row, int(np.ceil(position))]
        quantiles[row] = lerp(low, high, position - below)
