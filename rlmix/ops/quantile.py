"""Quantiles with a level for each row.

`torch.quantile` takes one list of levels for all rows: a level for each row makes it build a B x B table of which
only the diagonal is wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlmix.ops import compiled


def row_quantile(values: Tensor, levels: Tensor) -> Tensor:
    """Return the linearly interpolated quantile of each row at that row's level.

    Args:
        values: float [B, n].
        levels: float [B] in [0, 1].

    Returns:
        [B], the dtype of `values`.
    """
    if values.dtype == levels.dtype == torch.float32 and compiled.serves(values, levels):
        quantiles: Tensor = compiled.code("quantile_numba").row_quantile(values, levels)
        return quantiles
    last = values.shape[1] - 1
    position = (levels.to(values.dtype) * last).clamp(0, last)
    below = position.floor()
    around = values.sort(1).values.gather(1, torch.stack((below, position.ceil()), 1).long())
    low, high = around.unbind(1)
    return low.lerp(high, position - below)
