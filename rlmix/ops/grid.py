"""The one rule that ties pixels to the cells of a coarse grid: pixel i of H lies in cell (i * h) // H.

Whole numbers, so the rule is exact for every size. (`F.interpolate` and adaptive pooling follow other rules where the
grid does not divide the image.) Nesting is exact too: the cell in a grid of h is that in a grid of k*h, divided by k.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cells(size: int, count: int, device: torch.device | None = None) -> Tensor:
    """Return the cell of each pixel along one side: int64 [size], values in [0, count)."""
    return (torch.arange(size, device=device) * count) // size


def starts(size: int, count: int, device: torch.device | None = None) -> Tensor:
    """Return the first pixel of each cell along one side: int64 [count] (an empty cell repeats its successor's)."""
    index = torch.arange(count, device=device)
    return (index * size + count - 1) // count


def expand(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Show cells as pixels: [..., h, w] -> [..., H, W], same dtype; a side of 1 or of full size stays a view.

    Columns are expanded before rows, so that the second, larger copy runs over contiguous memory.
    """
    height, width = size
    if values.shape[-1] not in (1, width):
        values = values.index_select(-1, cells(width, values.shape[-1], values.device))
    if values.shape[-2] not in (1, height):
        values = values.index_select(-2, cells(height, values.shape[-2], values.device))
    return values.expand(*values.shape[:-2], height, width)


def _membership(size: int, count: int, like: Tensor) -> Tensor:
    """Return [count, size]: 1 / (pixels of the cell) where the pixel lies in the cell, else 0."""
    inside = cells(size, count, like.device) == torch.arange(count, device=like.device).unsqueeze(1)
    shares = inside.to(like.dtype)
    return shares / shares.sum(1, keepdim=True)


def pool(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Average the pixels of each cell: [B, H, W] float -> [B, h, w]; a map coarser than the grid is expanded.

    Args:
        maps: [B, H, W], floating point.
        shape: (h, w) of the grid.
    """
    batch, height, width = maps.shape
    rows, columns = shape
    if height < rows or width < columns:
        maps = expand(maps, (max(height, rows), max(width, columns)))
        batch, height, width = maps.shape
    if height % rows == 0 and width % columns == 0:
        # Down the rows first: that runs over contiguous memory and leaves little for the second, slower mean.
        return maps.reshape(batch, rows, height // rows, columns, width // columns).mean(2).mean(-1)
    return _membership(height, rows, maps) @ maps @ _membership(width, columns, maps).T


def areas(size: tuple[int, int], shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return the share of the pixels that each cell holds: float32 [h, w], sum 1."""
    rows = _counts(size[0], shape[0], device)
    columns = _counts(size[1], shape[1], device)
    return rows.unsqueeze(1) * columns / (size[0] * size[1])


def _counts(size: int, count: int, device: torch.device | None) -> Tensor:
    edges = starts(size, count, device)
    return torch.diff(edges, append=edges.new_full((1,), size)).float()


def mean(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean over *pixels* of values given per cell: [..., h, w] -> float32 [...]."""
    rows, columns = values.shape[-2:]
    if size[0] % rows == 0 and size[1] % columns == 0:
        return values.float().mean((-2, -1))
    return (values.float() * areas(size, (rows, columns), values.device)).sum((-2, -1))
