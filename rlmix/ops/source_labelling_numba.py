"""A round of `rlmix.ops.source_labelling` as compiled code for the CPU.

For tensors on the CPU, where a tensor operation costs more than the few numbers in it. Needs numba, which comes with
`pip install rlmix[jit]`; the machine code is kept on disk, so that only the first use on a machine compiles (seconds).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops.source_labelling import Instance, Labels, Visit, prices


def compiled(height: int, width: int) -> Visit:
    """Return what visits one output after the other in machine code and solves exactly, for tensors on the CPU."""

    def visit(instance: Instance, labels: Labels, uses: Tensor) -> tuple[Tensor, Tensor]:
        after = uses.clone()
        chosen = torch.empty(*instance.costs.shape, dtype=torch.int64)
        _visit(
            _array(labels.costs),
            _array(labels.smooth),
            _array(labels.shares),
            _array(prices(instance, labels)),
            _array(instance.compatibility),
            instance.threshold,
            instance.soft_threshold,
            height,
            width,
            _array(after),
            _array(chosen),
        )
        return chosen, after

    return visit


def _array(tensor: Tensor) -> Any:
    """Show a contiguous tensor as an array of the same memory."""
    return np.asarray(tensor.contiguous())


@numba.njit(cache=True)
def _visit(
    costs: Any,
    smooth: Any,
    shares: Any,
    weights: Any,
    compatibility: Any,
    threshold: float,
    soft: bool,
    height: int,
    width: int,
    uses: Any,
    chosen: Any,
) -> None:
    """Visit every output of every partition once.

    Args:
        costs: float64 [P, m, cells, L].
        smooth: float64 [P, m, L, L].
        shares: float64 [P, m, L, m].
        weights: float64 [P, m, L, m], what a unit of pressure of each input costs each label.
        compatibility: float64 [P, m, m].
        threshold: t.
        soft: whether only what is above the threshold counts.
        height: rows of the grid.
        width: columns of the grid.
        uses: float64 [P, m, m], changed in place.
        chosen: int64 [P, m, cells], the labels, written.
    """
    partitions, count, cells, _ = costs.shape
    for part in range(partitions):
        totals = uses[part].sum(axis=0)
        for output in range(count):
            others = totals - uses[part, output]
            met = compatibility[part] @ others
            pressure = np.maximum(met - threshold, 0.0) if soft else others * (met > threshold)
            unary = costs[part, output] + weights[part, output] @ pressure
            best_labels(unary, smooth[part, output], height, width, chosen[part, output])
            uses[part, output] = 0.0
            for cell in range(cells):
                uses[part, output] += shares[part, output, chosen[part, output, cell]]
            totals = others + uses[part, output]


@numba.njit(cache=True)
def best_labels(unary: Any, smooth: Any, height: int, width: int, chosen: Any) -> None:
    """Write the labels of least cost into `chosen`, exactly: dynamic programming over the last `width` cells.

    Args:
        unary: float64 [cells, L].
        smooth: float64 [L, L].
        height: rows of the grid.
        width: columns of the grid; the work grows with the labels that are left in a cell to its power.
        chosen: int64 [cells], written.
    """
    cells = unary.shape[0]
    kept, sizes = _candidates(unary, smooth.max(), height, width)
    # The table of a cell has an entry for every labelling of the last `width` cells, the newest changing fastest.
    starts = np.zeros(cells + 1, np.int64)
    for cell in range(cells):
        states = 1
        for near in range(max(0, cell - width + 1), cell + 1):
            states *= sizes[near]
        starts[cell + 1] = starts[cell] + states
    least = np.empty(starts[cells])
    before = np.zeros(1)
    for cell in range(cells):
        table = least[starts[cell] : starts[cell + 1]]
        _fill(cell, width, unary, smooth, kept, sizes, before, table)
        before = table
    entry = int(np.argmin(before))
    for cell in range(cells - 1, -1, -1):
        label = kept[cell, entry % sizes[cell]]
        chosen[cell] = label
        entry //= sizes[cell]
        if cell >= width:
            rests = (starts[cell] - starts[cell - 1]) // sizes[cell - width]
            lowest, found = np.inf, 0
            for old in range(sizes[cell - width]):
                cost = least[starts[cell - 1] + old * rests + entry] + smooth[kept[cell - width, old], label]
                if cost < lowest:
                    lowest, found = cost, old
            entry += found * rests


@numba.njit(cache=True)
def _candidates(unary: Any, edge: float, height: int, width: int) -> Any:
    """Return the labels that can be in each cell of an optimum, [cells, L], and how many these are [cells].

    One whose cost is above the least by more than the largest smoothness times the cell's neighbours cannot.
    """
    cells, labels = unary.shape
    kept = np.empty((cells, labels), np.int64)
    sizes = np.zeros(cells, np.int64)
    for cell in range(cells):
        row, column = cell // width, cell % width
        neighbours = (row > 0) + (row < height - 1) + (column > 0) + (column < width - 1)
        bound = unary[cell].min() + neighbours * edge
        for label in range(labels):
            if unary[cell, label] <= bound:
                kept[cell, sizes[cell]] = label
                sizes[cell] += 1
    return kept, sizes


@numba.njit(cache=True)
def _fill(cell: int, width: int, unary: Any, smooth: Any, kept: Any, sizes: Any, before: Any, table: Any) -> None:
    """Write the least costs of a cell's table from those of the cell before.

    Args:
        cell: which one.
        width: columns of the grid.
        unary: float64 [cells, L].
        smooth: float64 [L, L].
        kept: int64 [cells, L], candidates.
        sizes: int64 [cells].
        before: the table of the cell before, float64 [n]; [0.0] for the first cell.
        table: the cell's own, float64 [n].
    """
    size, above = sizes[cell], cell - width
    left = sizes[cell - 1] if cell % width > 0 else 1
    labels = kept[above, : sizes[above]] if above >= 0 else kept[0, :0]
    rests = len(before) // max(len(labels), 1)
    cheapest = np.empty(rests)
    lowest = _lowest(before, rests)
    for own in range(size):
        label = kept[cell, own]
        if above >= 0:
            _carry(before, lowest, smooth[label], labels, smooth.max(), cheapest)
        else:
            cheapest[:] = lowest
        for beside in range(left):
            cost = unary[cell, label]
            if cell % width > 0:
                cost += smooth[kept[cell - 1, beside], label]
            for rest in range(beside, rests, left):
                table[rest * size + own] = cheapest[rest] + cost


@numba.njit(cache=True)
def _lowest(before: Any, rests: int) -> Any:
    """Return the least cost over the oldest cell's candidates, float64 [rests]."""
    lowest = before[:rests].copy()
    for start in range(rests, len(before), rests):
        for rest in range(rests):
            cost = before[start + rest]
            if cost < lowest[rest]:
                lowest[rest] = cost
    return lowest


@numba.njit(cache=True)
def _carry(before: Any, lowest: Any, distances: Any, labels: Any, farthest: float, cheapest: Any) -> None:
    """Write the least cost above a label into `cheapest` [rests].

    Nearly all pairs of labels are at the largest distance, so that one minimum serves all of these.
    """
    rests = len(lowest)
    for rest in range(rests):
        cheapest[rest] = lowest[rest] + farthest
    for old in range(len(labels)):
        distance = distances[labels[old]]
        if distance < farthest:
            for rest in range(rests):
                cost = before[old * rests + rest] + distance
                if cost < cheapest[rest]:
                    cheapest[rest] = cost
