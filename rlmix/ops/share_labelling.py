"""Labelling the cells of a grid with levels of a share: few levels, quadratic differences between neighbours.

    E(l) = sum over cells of unary[cell, l] + sum over neighbours of weight * ((l - l') / (L - 1))**2

Each neighbouring pair has a weight of its own, which may be negative. Two solvers: `exact`, dynamic programming over
the labels of the last row, for narrow grids, and `chains` for all others. Both are a fixed number of tensor operations,
whatever the number of images; nothing is read back. Inside, images are the last axis, so that every operation runs
over contiguous memory.

On a CUDA device with Triton the kernels of `rlmix.ops.share_labelling_triton` take the place of this code, in one
launch each. They do the same sums in the same order and round each product, which this code leaves to torch: where two
labellings cost the same to the last bits, they may choose the other.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.errors import InputError
from rlmix.ops.blend import has_kernels

EXACT_STATES = 6561
"""`exact` takes grids of at most this many labellings of the shorter side (3 levels on 8 cells)."""
AUTOMATIC_STATES = 256
"""`solve` is exact up to this many: beyond, `chains` is faster by far and hardly ever worse."""
ROUNDS = 5
SWEEPS = 1
# A program of a kernel holds all of an image: cells and levels, resp. two to the power of these bits of states.
_KERNEL_SIDE, _KERNEL_LEVELS = 32, 8
_KERNEL_STATE_BITS = 13
# And the labels of all rows but the last in one number.
_KERNEL_HISTORY_BITS = 62


def solve(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return labels of low energy: the lowest on narrow grids (`exact`), else those of `chains`.

    Args:
        unary: float32 [B, h, w, L], L at least 2, the cost of each level in each cell.
        right: float32 [B, h, w-1], the weight between a cell and its right neighbour.
        down: float32 [B, h-1, w], the weight between a cell and the one below.

    Returns:
        int64 [B, h, w], levels in [0, L).
    """
    _, height, width, levels = unary.shape
    if levels ** min(height, width) <= AUTOMATIC_STATES:
        return exact(unary, right, down)
    return chains(unary, right, down)


def energy(unary: Tensor, right: Tensor, down: Tensor, labels: Tensor) -> Tensor:
    """Return the energy of each image's labels: float [B], the dtype of `unary`; arguments as in `solve`."""
    share = labels.to(unary.dtype) / (unary.shape[-1] - 1)
    own = unary.gather(3, labels.unsqueeze(3)).sum((1, 2, 3))
    across = (right * (share[:, :, 1:] - share[:, :, :-1]) ** 2).sum((1, 2))
    return own + across + (down * (share[:, 1:] - share[:, :-1]) ** 2).sum((1, 2))


def exact(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return the labels of the lowest energy; arguments and result as in `solve`.

    Cell by cell along the shorter side of w cells: a table holds the lowest energy so far for each labelling of the
    last w cells. It has B * L**w entries of 4 bytes, and is kept for every cell: for 100 images and 3 levels half a
    megabyte with 4x4 cells, 150 with 8x8.

    Raises:
        InputError: more than `EXACT_STATES` labellings of the shorter side.
    """
    batch, height, width, levels = unary.shape
    if height < width:
        return exact(unary.transpose(1, 2), down.transpose(1, 2), right.transpose(1, 2)).transpose(1, 2).contiguous()
    if levels**width > EXACT_STATES:
        raise InputError(
            f"an exact solution of {height}x{width} cells with {levels} levels needs {levels**width} states, more than "
            f"{EXACT_STATES}. Use `chains`, or a smaller grid."
        )
    bits = (levels - 1).bit_length()
    small = bits * (width + 1) <= _KERNEL_STATE_BITS and bits * width * (height - 1) <= _KERNEL_HISTORY_BITS
    if small and _is_on_kernels(unary):
        labels: Tensor = torch.ops.rlmix.label_exactly.default(unary, right, down)
        return labels
    differences = _differences(unary)
    # Cost of a cell's level (last but one axis) given its left neighbour's, resp. the one above.
    left = functional.pad(right, (1, 0)).permute(1, 2, 0).contiguous()[:, :, None, None]
    beside = unary.permute(1, 2, 3, 0).contiguous().unsqueeze(2) + left * differences
    above = down.permute(1, 2, 0).contiguous()[:, :, None, None] * differences
    table = beside[0, 0, 0]
    tables = []
    for cell in range(1, height * width):
        row, column = divmod(cell, width)
        if row == 0:
            table = table.view(-1, levels, 1, batch) + beside[row, column]
            continue
        tables.append(table)
        table = (table.view(levels, -1, 1, batch) + above[row - 1, column].unsqueeze(1)).amin(0)
        # In the first column the newest label in the table is no neighbour.
        near = beside[row, column] if column else beside[row, column, :1]
        table = table.view(-1, near.shape[0], levels, batch).add_(near).view(-1, batch)
    return _read(table.view(-1, batch), tables, above, levels).view(height, width, batch).permute(2, 0, 1).contiguous()


def _read(table: Tensor, tables: list[Tensor], above: Tensor, levels: int) -> Tensor:
    """Follow the tables back from the last cell: int64 [cells, B]."""
    batch, width = table.shape[1], above.shape[1]
    images = torch.arange(batch, device=table.device)
    rest = levels ** (width - 1)
    state = table.argmin(0)
    found = [(state // levels**place) % levels for place in range(width)]
    for step in range(len(tables) - 1, -1, -1):
        # A state is (rest, newest); the one before it (oldest, rest).
        newest, kept = state % levels, state // levels
        before = tables[step].view(levels, rest * batch).index_select(1, kept * batch + images)
        cost = above[step // width, step % width].reshape(levels, levels * batch)
        oldest = (before + cost.index_select(1, newest * batch + images)).argmin(0)
        found.append(oldest)
        state = oldest * rest + kept
    return torch.stack(found[::-1])


def chains(unary: Tensor, right: Tensor, down: Tensor, rounds: int = ROUNDS, sweeps: int = SWEEPS) -> Tensor:
    """Return labels of low energy for any grid; arguments and result as in `solve`.

    Rows and columns are chains, and a chain is solved exactly. First the cells' costs are divided between the two: the
    rows take in turns half of what each level of a cell costs at least in its whole row (its min-marginal) and hand it
    to the columns, and the columns likewise. Each turn raises a lower bound of the energy, as in sequential
    tree-reweighted message passing (Kolmogorov 2006, https://doi.org/10.1109/TPAMI.2006.200). The columns' best labels
    under their share are the start. Then every second row is solved exactly with the others held, then the others,
    then columns alike: the energy never rises.

    Args:
        unary: as in `solve`.
        right: as in `solve`.
        down: as in `solve`.
        rounds: how often rows hand over to columns, at least 1.
        sweeps: how often all rows and all columns are solved in the end.
    """
    _, height, width, levels = unary.shape
    if max(height, width) <= _KERNEL_SIDE and levels <= _KERNEL_LEVELS and _is_on_kernels(unary):
        labels: Tensor = torch.ops.rlmix.label_by_chains.default(unary, right, down, rounds, sweeps)
        return labels
    differences = _differences(unary)
    # [position along the chain, level, chain, image], rows as chains first.
    along_rows = _pairwise(right.permute(2, 1, 0), differences)
    along_columns = _pairwise(down.permute(1, 2, 0), differences)
    costs = unary.permute(2, 3, 1, 0).contiguous()
    rows, columns = costs, torch.zeros_like(costs.transpose(0, 2))
    for turn in range(rounds):
        given = _handed_over(rows, along_rows, turn % 2 == 1)
        columns = columns + given.transpose(0, 2)
        if turn < rounds - 1:
            rows = rows - given
            given = _handed_over(columns, along_columns, turn % 2 == 1)
            columns = columns - given
            rows = rows + given.transpose(0, 2)
    pull = _pull(along_columns)
    # With a rim of zeros, which weigh nothing, so that cells at the border need no case of their own.
    held = functional.pad(_best(columns, along_columns, pull), (0, 0, 1, 1, 1, 1))
    by_rows = [_Half(costs, along_rows, down.permute(1, 2, 0), parity) for parity in range(min(2, height))]
    across = unary.permute(1, 3, 2, 0).contiguous()
    by_columns = [_Half(across, along_columns, right.permute(2, 1, 0), parity) for parity in range(min(2, width))]
    for _ in range(sweeps):
        for half in by_rows:
            half.solve(held)
        for half in by_columns:
            half.solve(held.transpose(0, 1))
    return held[1:-1, 1:-1].permute(2, 0, 1).long().contiguous()


def _is_on_kernels(unary: Tensor) -> bool:
    """Say whether the kernels take these costs, if the grid is small enough."""
    return unary.is_cuda and unary.dtype == torch.float32 and unary.numel() > 0 and has_kernels(unary.device)


def _fused_exact(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    from rlmix.ops import share_labelling_triton

    return share_labelling_triton.exact(unary, right, down)


def _fused_chains(unary: Tensor, right: Tensor, down: Tensor, rounds: int, sweeps: int) -> Tensor:
    from rlmix.ops import share_labelling_triton

    return share_labelling_triton.chains(unary, right, down, rounds, sweeps)


def _labels_like(unary: Tensor, *_: object) -> Tensor:
    return torch.empty(unary.shape[:3], dtype=torch.int64, device=unary.device)


# Operators of their own, so that torch.compile keeps the kernels in one graph.
torch.library.define("rlmix::label_exactly", "(Tensor unary, Tensor right, Tensor down) -> Tensor")
torch.library.define(
    "rlmix::label_by_chains", "(Tensor unary, Tensor right, Tensor down, int rounds, int sweeps) -> Tensor"
)
torch.library.impl("rlmix::label_exactly", "default", _fused_exact)
torch.library.impl("rlmix::label_by_chains", "default", _fused_chains)
torch.library.register_fake("rlmix::label_exactly", _labels_like)
torch.library.register_fake("rlmix::label_by_chains", _labels_like)


def _differences(unary: Tensor) -> Tensor:
    """Return the squared difference of every two levels' shares: [L, L, 1]."""
    levels = unary.shape[-1]
    share = torch.arange(levels, device=unary.device, dtype=unary.dtype) / (levels - 1)
    return ((share.unsqueeze(1) - share) ** 2).unsqueeze(2)


def _pairwise(weight: Tensor, differences: Tensor) -> Tensor:
    """Return the cost of every two levels at each step of each chain: [steps, L, L, chains, B]."""
    return weight.contiguous()[:, None, None] * differences.unsqueeze(3)


def _handed_over(costs: Tensor, along: Tensor, backward: bool) -> Tensor:
    """Return the part of the min-marginals that a chain gives away.

    At each cell, in order, half of what is left of the min-marginal, and all of it at the last: so the chain's rest has
    the same lowest energy less what was given, which bounds the energy of the whole from below.

    Args:
        costs: [n, L, chains, B], of each cell's levels.
        along: [n-1, L, L, chains, B], of each two neighbours' levels.
        backward: from the last cell to the first.
    """
    cells, edges = list(costs.unbind()), list(along.unbind())
    if backward:
        cells.reverse()
        edges.reverse()
    # What the cells still to come add to each level of this one.
    ahead = [torch.zeros_like(cells[0])]
    for cell, edge in zip(cells[:0:-1], edges[::-1], strict=True):
        ahead.append(((ahead[-1] + cell).unsqueeze(1) + edge).amin(0))
    ahead.reverse()
    # Twice what the cells already passed add, so that halves need no operation of their own.
    behind = [torch.zeros_like(cells[0])]
    for cell, edge, rest in zip(cells[:-1], edges, ahead[:-1], strict=True):
        kept = torch.add(cell, behind[-1], alpha=0.5) - rest
        behind.append(torch.add(kept.unsqueeze(1), edge, alpha=2.0).amin(0))
    if backward:
        ahead.reverse()
        behind.reverse()
    given = torch.stack(behind).mul_(0.5).add_(costs).add_(torch.stack(ahead)).mul_(0.5)
    given[0 if backward else -1] *= 2.0
    return given


def _pull(along: Tensor) -> Tensor:
    """Return how the label of a cell's successor changes the costs of its own levels, times that label: [n-1, L, ...].

    Of `weight * (l - l')**2` this is `-2 * weight * l`; what depends on l' alone changes no choice.
    """
    levels = along.shape[1]
    share = torch.arange(levels, device=along.device, dtype=along.dtype).view(levels, 1, 1)
    # The first column of the table of differences is the square of the share.
    return along[:, 1:2, 0] * (-2.0 * share)


def _best(costs: Tensor, along: Tensor, pull: Tensor) -> Tensor:
    """Return the best labels of each chain, as float32 [n, chains, B].

    Args:
        costs: as in `_handed_over`.
        along: as in `_handed_over`.
        pull: of `along`.
    """
    reached = [costs[0]]
    for cell, edge in zip(costs[1:].unbind(), along.unbind(), strict=True):
        reached.append((reached[-1].unsqueeze(1) + edge).amin(0) + cell)
    # `min` is many times as fast as `argmin` along an axis that is not the last.
    label = reached.pop().min(0).indices.to(costs.dtype)
    found = [label]
    if reached:
        before = torch.stack(reached) + along[:, :, 0]
        for cell, toward in zip(reversed(before.unbind()), reversed(pull.unbind()), strict=True):
            label = torch.addcmul(cell, toward, label).min(0).indices.to(costs.dtype)
            found.append(label)
    return torch.stack(found[::-1])


class _Half:
    """Every second chain of one direction, solved exactly while the others are held.

    Args:
        costs: [n, L, chains, B], of each cell's levels.
        along: [n-1, L, L, chains, B], within the chains.
        between: [chains-1, n, B], the weights between neighbouring chains.
        parity: 0 for the first chain and every second after it, 1 for the others.
    """

    def __init__(self, costs: Tensor, along: Tensor, between: Tensor, parity: int) -> None:
        levels, chains = costs.shape[1:3]
        between = functional.pad(between.contiguous(), (0, 0, 0, 0, 1, 1)).transpose(0, 1)
        self._chains = slice(parity, chains, 2), slice(parity + 2, chains + 2, 2)
        self._weights = between[:, parity:chains:2], between[:, parity + 1 : chains + 1 : 2]
        self._along = along[:, :, :, parity::2]
        self._pull = _pull(self._along)
        # In steps of the labels, as `held` is: (l - l')**2 without what depends on l' alone.
        share = torch.arange(levels, device=costs.device, dtype=costs.dtype).view(levels, 1, 1) / (levels - 1)
        self._costs = costs[:, :, parity::2] + (share * share) * (self._weights[0] + self._weights[1]).unsqueeze(1)
        self._share = share * (-2.0 / (levels - 1))
        self._own = slice(parity + 1, chains + 1, 2)

    def solve(self, held: Tensor) -> None:
        """Write these chains' labels into `held` [chains + 2, n + 2, B], labels with a rim of zeros."""
        cells = held[:, 1:-1].transpose(0, 1)
        one, two = self._chains
        sides = self._weights[0] * cells[:, one] + self._weights[1] * cells[:, two]
        costs = torch.addcmul(self._costs, self._share, sides.unsqueeze(1))
        cells[:, self._own] = _best(costs, self._along, self._pull)
