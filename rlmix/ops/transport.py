"""Moving the cells of an image to the places of a mask: rounds of bids, all images at once.

What it costs to show cell i at place j is `scale * d(i, j)**2 - gain_i` where the mask lets the place be seen, and
`scale * d(i, j)**2` elsewhere, d being the distance on the grid. In each round every cell bids for its cheapest place,
each place takes its cheapest bid, and who loses pays 1 more for that place from then on. A bid that does not cost less
than 0 never wins.

Gains are at most 1, so a bid once lost stays lost, and places where nothing is seen are never won: each cell goes
through the visible places by their distance, for as long as its gain outweighs it. Only the rank of the nearest place
not yet lost is looked for in each round, in a table of 2 bytes for each pair of cells.

On a CUDA device with Triton the kernel of `rlmix.ops.transport_triton` takes the place of this code, in one launch and
without the table; its moves are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.ops.blend import has_kernels

_KERNEL_CELLS = 1024
"""A program of the kernel holds all cells of an image."""


def assign(gains: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return which cell is shown at each place.

    Args:
        gains: float32 [B, h, w] in [0, 1], what showing each cell is worth.
        seen: bool [B, h, w], the places where the image is seen at all.
        scale: above 0, the cost of a move across the longer side of the grid.

    Returns:
        int32 [B, h, w]: the cell (row-major) that won the place after as many rounds as the longer side has cells; the
        place's own where nobody won it, which happens only where nothing is seen or the own cell gains nothing. Of
        equal bids the first cell's wins; of equally near places the first is tried first.
    """
    batch, height, width = gains.shape
    longer, count = max(height, width), height * width
    # Of a move to the next cell.
    cost = scale / max(1, longer - 1) ** 2
    if _is_fused(gains):
        fused: Tensor = torch.ops.rlmix.assign.default(gains, seen, cost)
        return fused
    far, order = _distances(height, width, gains.device)
    costs = (far * cost).to(gains.dtype)
    shown = _bid(gains.reshape(batch, count), seen.reshape(batch, count), costs, order, longer)
    return shown.view(batch, height, width)


def _is_fused(gains: Tensor) -> bool:
    """Say whether the kernel moves these cells."""
    if not gains.is_cuda or not has_kernels(gains.device):
        return False
    return 0 < gains.numel() <= gains.shape[0] * _KERNEL_CELLS


def _fused_assign(gains: Tensor, seen: Tensor, cost: float) -> Tensor:
    from rlmix.ops import transport_triton

    return transport_triton.assign(gains, seen, cost)


# An operator of its own, so that torch.compile keeps the kernel in one graph.
torch.library.define("rlmix::assign", "(Tensor gains, Tensor seen, float cost) -> Tensor")
torch.library.impl("rlmix::assign", "default", _fused_assign)
torch.library.register_fake(
    "rlmix::assign", lambda gains, *_: torch.empty(gains.shape, dtype=torch.int32, device=gains.device)
)


def _distances(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for each cell and in the order of distance, the places' squared distances and numbers: [n, n] each."""
    cell = torch.arange(height * width, device=device)
    rows, columns = cell // width, cell % width
    far = (rows.unsqueeze(1) - rows) ** 2 + (columns.unsqueeze(1) - columns) ** 2
    ordered = torch.sort(far, dim=1, stable=True)
    return ordered.values, ordered.indices


def _bid(gains: Tensor, seen: Tensor, costs: Tensor, order: Tensor, rounds: int) -> Tensor:
    """Run the rounds.

    Args:
        gains: [B, n].
        seen: bool [B, n].
        costs: [n, n], for each cell the cost of the move to its nearest place, the next one and so on.
        order: int64 [n, n], these places.
        rounds: at least 1.
    """
    batch, count = gains.shape
    cell = torch.arange(count, device=gains.device)
    # A cell that has lost everywhere finds a place of this rank, which is not worth its cost.
    nowhere, width = count, count + 1
    places = functional.pad(order, (0, 1)).flatten()
    costs = functional.pad(costs, (0, 1), value=2.0).flatten()
    rank = order.argsort(1).T.to(torch.int16)
    # [place, image, cell]: the place's rank for the cell, for as long as it is to be had. The best of the first axis is
    # found many times as fast as that of the last.
    left = rank.unsqueeze(1).expand(count, batch, count).masked_fill(~seen.T.unsqueeze(2), nowhere)
    for turn in range(rounds):
        near = left.amin(0)
        at = torch.add(near, cell * width).flatten()
        place = places.index_select(0, at).view(batch, count)
        worth = (gains - costs.index_select(0, at).view(batch, count)).clamp_min_(0.0)
        # The bits of a float that is not negative are in its own order; of equal bids the first cell's is the highest,
        # and only bids of some worth are above 0.
        bid = worth.view(torch.int32).long() * count - cell
        best = torch.full_like(bid, -count).scatter_reduce_(1, place, bid, "amax")
        if turn < rounds - 1:
            near.masked_fill_(best.gather(1, place) != bid, nowhere)
            left.scatter_(0, place.unsqueeze(0), near.unsqueeze(0))
    return torch.where(best > 0, -best % count, cell).to(torch.int32)
