"""The rounds of bids of `rlmix.ops.transport` as one Triton kernel; the result is the same bit by bit.

A program runs all rounds of one image. A place that a cell has lost, or that is not seen, stays out of its reach, so
that each cell goes through the places in one order, by distance: all that a program keeps of an image is how far each
cell has come. Places are looked at in blocks, each block by all cells at once; nothing but the result is written.

Needs Triton, and a GPU unless TRITON_INTERPRET=1 was set before the first import.
"""

# The kernels are written in Triton's language, which only looks like Python: their arguments have no Python types.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# How many pairs of a cell and a place each thread has in hand.
_PAIRS = 32
_WARPS = 8
_NEVER = tl.constexpr(2**31 - 1)


@triton.jit
def _next(
    key, lost, seen, row, column, count, width, cells: tl.constexpr, at_once: tl.constexpr
):  # fmt: skip
    """Return the keys of the cells' places, those of cells that lost moved on to the next place that is seen.

    A key is (squared distance) * count + place, so that keys are in the order in which a cell tries its places.
    """
    nearest = tl.full((cells,), _NEVER, tl.int32)
    for first in range(0, count, at_once):
        place = first + tl.arange(0, at_once)
        free = tl.load(seen + place, mask=place < count, other=0) != 0
        down = row[:, None] - (place // width)[None, :]
        across = column[:, None] - (place % width)[None, :]
        candidate = (down * down + across * across) * count + place[None, :]
        candidate = tl.where(free[None, :] & (candidate > key[:, None]), candidate, _NEVER)
        nearest = tl.minimum(nearest, tl.min(candidate, 1))
    return tl.where(lost, nearest, key)


@triton.jit
def _bids(key, gain, cell, count, cost):
    """Return each cell's place and bid, int64; -1 both where the bid is worth nothing, now and for ever after."""
    worth = gain - (key // count).to(tl.float32) * cost
    bids = (key != _NEVER) & (worth > 0.0)
    # The bits of a float that is not negative are in its own order; of equal bids the first cell's is the highest.
    bid = worth.to(tl.int32, bitcast=True).to(tl.int64) * count + (count - 1 - cell)
    return tl.where(bids, key % count, -1), tl.where(bids, bid, -1)


@triton.jit
def _highest(place, bid, first, at_once: tl.constexpr):
    """Return which cells bid for each place of a block, and the highest bid for it: [cells, block], [block]."""
    mine = place[:, None] == (first + tl.arange(0, at_once))[None, :]
    return mine, tl.max(tl.where(mine, bid[:, None], -1), 0)


@triton.jit(do_not_specialize=["height", "width", "cost", "rounds"])
def _assign(
    shown, gains, seen, height, width, cost, rounds, cells: tl.constexpr, at_once: tl.constexpr
):  # fmt: skip
    """Run the rounds of one image."""
    count = height * width
    image = tl.program_id(0).to(tl.int64) * count
    cell = tl.arange(0, cells)
    row, column = cell // width, cell % width
    gain = tl.load(gains + image + cell, mask=cell < count, other=0.0)
    key = tl.full((cells,), -1, tl.int32)
    key = _next(key, cell < count, seen + image, row, column, count, width, cells, at_once)
    left = rounds - 1
    while left > 0:
        place, bid = _bids(key, gain, cell, count, cost)
        lost = tl.full((cells,), 0, tl.int32)
        for first in range(0, count, at_once):
            mine, best = _highest(place, bid, first, at_once)
            lost = tl.maximum(lost, tl.max((mine & (bid[:, None] < best[None, :])).to(tl.int32), 1))
        key = _next(key, lost > 0, seen + image, row, column, count, width, cells, at_once)
        # Where nobody loses, further rounds change nothing.
        left = tl.where(tl.max(lost, 0) > 0, left - 1, 0)
    place, bid = _bids(key, gain, cell, count, cost)
    for first in range(0, count, at_once):
        _, best = _highest(place, bid, first, at_once)
        own = first + tl.arange(0, at_once)
        winner = (count - 1 - best % count).to(tl.int32)
        tl.store(shown + image + own, tl.where(best >= 0, winner, own), mask=own < count)


def assign(gains: Tensor, seen: Tensor, cost: float) -> Tensor:
    """Return which cell is shown at each place; arguments and result as those of `rlmix.ops.transport.assign`.

    Args:
        gains: float32 [B, h, w] in [0, 1], B at least 1 and h * w at most 1024.
        seen: bool [B, h, w], on the same device.
        cost: of a move to the next cell.
    """
    batch, height, width = gains.shape
    shown = torch.empty(gains.shape, dtype=torch.int32, device=gains.device)
    cells = max(16, triton.next_power_of_2(height * width))
    warps = min(_WARPS, cells // 16)
    with torch.cuda.device(gains.get_device()):
        _assign[(batch,)](
            shown,
            gains.contiguous(),
            seen.contiguous().view(torch.uint8),
            height,
            width,
            cost,
            max(height, width),
            cells=cells,
            at_once=min(cells, 32 * warps * _PAIRS // cells),
            num_warps=warps,
            # Every product is rounded, as in torch.
            enable_fp_fusion=False,
        )
    return shown
