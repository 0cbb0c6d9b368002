"""Quantiles with a level for each row.

`torch.quantile` takes one list of levels for all rows: a level for each row makes it build a B x B table of which
only the diagonal is wanted.
"""

from __future__ import annotations

from torch import Tensor


def row_quantile(values: Tensor, levels: Tensor) -> Tensor:
    """Return the linearly interpolated quantile of each row at that row's level.

    Args:
        values: float [B, n].
        levels: float [B] in [0, 1].

    Returns:
        [B], the dtype of `values`.
    """
    ordered = values.sort(1).values
    position = levels.to(values.dtype) * (values.shape[1] - 1)
    below = position.floor().clamp(0, values.shape[1] - 1)
    above = position.ceil().clamp(0, values.shape[1] - 1)
    low = ordered.gather(1, below.long().unsqueeze(1)).squeeze(1)
    high = ordered.gather(1, above.long().unsqueeze(1)).squeeze(1)
    return low.lerp(high, position - below)
