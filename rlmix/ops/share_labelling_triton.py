"""The solvers of `rlmix.ops.share_labelling` as one Triton kernel each, with the same sums in the same order.

A program solves one image and holds all of it. What runs cell by cell takes a cell, or a line of cells, out of the
whole by a sum in which all others are zero, which is exact; so nothing but the result is ever written. Numbers of
levels and cells are padded to powers of two: a padded cell has costs and weights of zero and is never read back, a
padded level is left out of every minimum.

Needs Triton, and a GPU unless TRITON_INTERPRET=1 was set before the first import.
"""

# The kernels are written in Triton's language, which only looks like Python: their arguments have no Python types.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# How many numbers of the largest array each thread has in hand.
_EACH = 16
_WARPS = 8
_INFINITE = tl.constexpr(float("inf"))


@triton.jit
def _shares(levels: tl.constexpr, padded: tl.constexpr):
    """Return the levels' shares, and the squared difference of every two: [padded], [padded, padded]."""
    share = tl.div_rn(tl.arange(0, padded).to(tl.float32), tl.full((padded,), levels - 1, tl.float32))
    difference = share[:, None] - share[None, :]
    return share, difference * difference


@triton.jit
def _at(step, cells: tl.constexpr, axis: tl.constexpr):
    """Return where a line of the grid lies: bool [cells, 1] for axis 0, [1, cells] for axis 1."""
    return tl.expand_dims(tl.arange(0, cells) == step, 1 - axis)


@triton.jit
def _line(grid, step, cells: tl.constexpr, axis: tl.constexpr):
    """Return a line of a grid [h, w]."""
    return tl.sum(tl.where(_at(step, cells, axis), grid, 0.0), axis)


@triton.jit
def _costs_of(costs, step, cells: tl.constexpr, axis: tl.constexpr):
    """Return a line of costs [h, w, L]: [chains, L]."""
    return tl.sum(tl.where(_at(step, cells, axis)[:, :, None], costs, 0.0), axis)


@triton.jit
def _with_line(costs, step, line, cells: tl.constexpr, axis: tl.constexpr):
    """Return costs [h, w, L] with a line [chains, L] put in."""
    return tl.where(_at(step, cells, axis)[:, :, None], tl.expand_dims(line, axis), costs)


@triton.jit
def _least(costs, pairwise, levels: tl.constexpr, padded: tl.constexpr):
    """Return the lowest cost of each level of the next cell: [chains, L] from [chains, L] and [chains, L, L]."""
    valid = (tl.arange(0, padded) < levels)[None, :, None]
    return tl.min(tl.where(valid, costs[:, :, None] + pairwise, _INFINITE), 1)


@triton.jit
def _cheapest(costs, levels: tl.constexpr, padded: tl.constexpr):
    """Return the best level of each chain, as float32: [chains] from [chains, L]."""
    valid = (tl.arange(0, padded) < levels)[None, :]
    best = tl.argmin(tl.where(valid, costs, _INFINITE), 1)
    # Costs that are no numbers choose nothing, and must give a level none the less.
    return tl.minimum(best, levels - 1).to(tl.float32)


@triton.jit
def _handed_over(
    costs, along, differences, last, backward,
    axis: tl.constexpr, cells: tl.constexpr, chains: tl.constexpr, levels: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Return the part of the min-marginals [h, w, L] that the chains along an axis give away.

    Step k of a chain is its cell k, or last - k backward; the weight between steps k and k + 1 is that of the first of
    the two cells.
    """
    sign = tl.where(backward, -1, 1)
    start = tl.where(backward, last, 0)
    edge = tl.where(backward, last - 1, 0)
    # What the cells still to come add to each level of this one.
    ahead = tl.zeros_like(costs)
    carried = tl.zeros((chains, padded), tl.float32)
    for passed in range(last):
        step = last - 1 - passed
        weight = _line(along, edge + sign * step, cells, axis)
        pairwise = weight[:, None, None] * differences[None, :, :]
        carried = _least(
            carried + _costs_of(costs, start + sign * (step + 1), cells, axis), pairwise, levels, padded
        )  # fmt: skip
        ahead = _with_line(ahead, start + sign * step, carried, cells, axis)
    # Twice what the cells already passed add.
    behind = tl.zeros_like(costs)
    carried = tl.zeros((chains, padded), tl.float32)
    for step in range(last):
        here = start + sign * step
        weight = _line(along, edge + sign * step, cells, axis)
        pairwise = weight[:, None, None] * differences[None, :, :]
        kept = _costs_of(costs, here, cells, axis) + 0.5 * carried - _costs_of(ahead, here, cells, axis)
        carried = _least(kept, 2.0 * pairwise, levels, padded)
        behind = _with_line(behind, here + sign, carried, cells, axis)
    given = (behind * 0.5 + costs + ahead) * 0.5
    return tl.where(_at(start + sign * last, cells, axis)[:, :, None], given * 2.0, given)


@triton.jit
def _best(
    costs, along, differences, last,
    axis: tl.constexpr, cells: tl.constexpr, levels: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Return the best labels of the chains along an axis, as float32 [h, w]."""
    level = tl.arange(0, padded)
    # Of weight * (l - l')**2, what depends on l: weight * l**2, and weight * -2 * l for each step of l'.
    square = tl.sum(tl.where((level == 0)[None, :], differences, 0.0), 1)
    unit = tl.sum(tl.where(level == 1, square, 0.0), 0)
    carried = _costs_of(costs, 0, cells, axis)
    reached = _with_line(tl.zeros_like(costs), 0, carried, cells, axis)
    for step in range(last):
        pairwise = _line(along, step, cells, axis)[:, None, None] * differences[None, :, :]
        carried = _least(carried, pairwise, levels, padded) + _costs_of(costs, step + 1, cells, axis)
        reached = _with_line(reached, step + 1, carried, cells, axis)
    label = _cheapest(carried, levels, padded)
    labels = tl.where(_at(last, cells, axis), tl.expand_dims(label, axis), tl.zeros_like(along))
    for passed in range(last):
        step = last - 1 - passed
        weight = _line(along, step, cells, axis)[:, None]
        before = _costs_of(reached, step, cells, axis) + weight * square[None, :]
        toward = (weight * unit) * (-2.0 * level.to(tl.float32))[None, :]
        label = _cheapest(before + toward * label[:, None], levels, padded)
        labels = tl.where(_at(step, cells, axis), tl.expand_dims(label, axis), labels)
    return labels


@triton.jit
def _solved(
    labels, costs, along, before, after, differences, last, parity,
    axis: tl.constexpr, cells: tl.constexpr, chains: tl.constexpr, levels: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Return the labels with every second chain along an axis solved exactly while the others are held.

    `before` and `after` [h, w] are the weights between a cell and those of the chains on either side.
    """
    # The labels on either side; there are none beyond the first and the last chain, whose weights there are zero.
    one, two = tl.zeros_like(labels), tl.zeros_like(labels)
    for chain in range(chains - 1):
        line = tl.expand_dims(_line(labels, chain, chains, 1 - axis), 1 - axis)
        one = tl.where(_at(chain + 1, chains, 1 - axis), line, one)
        line = tl.expand_dims(_line(labels, chain + 1, chains, 1 - axis), 1 - axis)
        two = tl.where(_at(chain, chains, 1 - axis), line, two)
    share, _ = _shares(levels, padded)
    share = share[None, None, :]
    costs = costs + (share * share) * (before + after)[:, :, None]
    costs = costs + (share * (-2.0 / (levels - 1))) * (before * one + after * two)[:, :, None]
    fresh = _best(costs, along, differences, last, axis, cells, levels, padded)
    number = tl.arange(0, chains) % 2 == parity
    return tl.where(tl.expand_dims(number, axis), fresh, labels)


@triton.jit(do_not_specialize=["height", "width", "rounds", "sweeps"])
def _chains(
    labels, unary, right, down, height, width, rounds, sweeps,
    levels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """Solve one image by chains."""
    image = tl.program_id(0).to(tl.int64)
    row, column, level = tl.arange(0, rows)[:, None], tl.arange(0, columns)[None, :], tl.arange(0, padded)
    inside = (row < height) & (column < width)
    cell = image * height * width + row * width + column
    costs = tl.load(
        unary + cell[:, :, None] * levels + level[None, None, :],
        mask=inside[:, :, None] & (level < levels)[None, None, :],
        other=0.0,
    )
    # Each cell's weights towards its four neighbours.
    across = right + image * height * (width - 1) + row * (width - 1) + column
    east = tl.load(across, mask=inside & (column < width - 1), other=0.0)
    west = tl.load(across - 1, mask=inside & (column > 0), other=0.0)
    along = down + image * (height - 1) * width + row * width + column
    south = tl.load(along, mask=inside & (row < height - 1), other=0.0)
    north = tl.load(along - width, mask=inside & (row > 0), other=0.0)
    _, differences = _shares(levels, padded)
    by_rows, by_columns = costs, tl.zeros_like(costs)
    for turn in range(rounds - 1):
        backward = turn % 2 == 1
        given = _handed_over(by_rows, east, differences, width - 1, backward, 1, columns, rows, levels, padded)
        by_columns += given
        by_rows -= given
        given = _handed_over(by_columns, south, differences, height - 1, backward, 0, rows, columns, levels, padded)
        by_columns -= given
        by_rows += given
    backward = rounds % 2 == 0
    by_columns += _handed_over(by_rows, east, differences, width - 1, backward, 1, columns, rows, levels, padded)
    found = _best(by_columns, south, differences, height - 1, 0, rows, levels, padded)
    for _ in range(sweeps):
        for parity in range(2):
            found = _solved(
                found, costs, east, north, south, differences, width - 1, parity, 1, columns, rows, levels, padded
            )  # fmt: skip
        for parity in range(2):
            found = _solved(
                found, costs, south, west, east, differences, height - 1, parity, 0, rows, columns, levels, padded
            )  # fmt: skip
    tl.store(labels + cell, found.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["height"])
def _exact(
    labels, unary, right, down, height,
    width: tl.constexpr, levels: tl.constexpr, padded: tl.constexpr, bits: tl.constexpr, cells: tl.constexpr,
):  # fmt: skip
    """Solve one image exactly.

    The digits of a state, of `bits` bits, are the labels of the last `width` cells, the newest last. With the lowest
    energy of each state goes the history that led to it: the labels of all earlier cells in one number, the first cell
    in its lowest bits.
    """
    rest: tl.constexpr = padded ** (width - 1)
    count = height * width
    image = tl.program_id(0).to(tl.int64)
    unary += image * count * levels
    right += image * height * (width - 1)
    down += image * (height - 1) * width
    level = tl.arange(0, padded)
    valid = level < levels
    _, differences = _shares(levels, padded)
    table = tl.load(unary + level, mask=valid, other=_INFINITE)
    for first in tl.static_range(1, width):
        near = tl.load(unary + first * levels + level, mask=valid, other=_INFINITE)[None, :]
        near = near + tl.load(right + first - 1) * differences
        table = tl.reshape(table, (padded ** (first - 1), padded, 1)) + near[None, :, :]
        table = tl.reshape(table, (padded ** (first + 1),))
    history = tl.zeros((padded * rest,), tl.int64)
    oldest = level[:, None, None]
    for cell in range(width, count):
        row, column = cell // width, cell % width
        above = tl.load(down + cell - width) * differences
        table3 = tl.reshape(table, (padded, rest, 1)) + above[:, None, :]
        least = tl.min(table3, 0)
        chosen = tl.min(tl.where(table3 == least[None, :, :], oldest, padded - 1), 0)
        before = tl.where(oldest == chosen[None, :, :], tl.reshape(history, (padded, rest, 1)), 0)
        history = tl.max(before, 0) | (chosen.to(tl.int64) << (bits * (cell - width)))
        history = tl.reshape(history, (padded * rest,))
        near = tl.load(unary + cell * levels + level, mask=valid, other=_INFINITE)[None, :]
        if width > 1:
            # In the first column the newest label in the table is no neighbour.
            beside = tl.load(right + row * (width - 1) + column - 1, mask=column > 0, other=0.0)
            near = near + beside * differences
            least = tl.reshape(tl.reshape(least, (rest // padded, padded, padded)) + near[None, :, :], (padded * rest,))
        else:
            least = tl.reshape(least + near, (padded,))
        table = least
    state = tl.argmin(table, 0)
    past = tl.sum(tl.where(tl.arange(0, padded * rest) == state, history, 0), 0)
    number = tl.arange(0, cells)
    left = number < count - width
    digits = tl.where(left, past, state.to(tl.int64))
    place = tl.where(left, number, tl.maximum(count - 1 - number, 0))
    found = (digits >> (bits * place).to(tl.int64)) & (padded - 1)
    # Costs that are no numbers choose nothing, and must give a level none the less.
    found = tl.minimum(found, levels - 1)
    tl.store(labels + image * count + number, found, mask=number < count)


def chains(unary: Tensor, right: Tensor, down: Tensor, rounds: int, sweeps: int) -> Tensor:
    """Return labels of low energy; arguments and result as those of `rlmix.ops.share_labelling.chains`.

    All are float32 and on the same device; B is at least 1.
    """
    batch, height, width, levels = unary.shape
    labels = torch.empty((batch, height, width), dtype=torch.int64, device=unary.device)
    rows, columns, padded = (int(triton.next_power_of_2(size)) for size in (height, width, levels))
    with torch.cuda.device(unary.get_device()):
        _chains[(batch,)](
            labels,
            unary.contiguous(),
            right.contiguous(),
            down.contiguous(),
            height,
            width,
            rounds,
            sweeps,
            levels=levels,
            rows=rows,
            columns=columns,
            padded=padded,
            num_warps=_warps(rows * columns * padded),
            # Every product is rounded, as in torch.
            enable_fp_fusion=False,
        )
    return labels


def exact(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return the labels of the lowest energy; arguments and result as those of `rlmix.ops.share_labelling.exact`.

    All are float32 and on the same device; B is at least 1, no side is shorter than the width, and the labels of all
    rows but the last fit into 62 bits.
    """
    batch, height, width, levels = unary.shape
    labels = torch.empty((batch, height, width), dtype=torch.int64, device=unary.device)
    bits = (levels - 1).bit_length()
    with torch.cuda.device(unary.get_device()):
        _exact[(batch,)](
            labels,
            unary.contiguous(),
            right.contiguous(),
            down.contiguous(),
            height,
            width=width,
            levels=levels,
            padded=2**bits,
            bits=bits,
            cells=triton.next_power_of_2(height * width),
            num_warps=_warps(2 ** (bits * (width + 1))),
            enable_fp_fusion=False,
        )
    return labels


def _warps(numbers: int) -> int:
    """Return how many warps an image gets: a power of two, for a power of two of numbers."""
    return max(1, min(_WARPS, numbers // (32 * _EACH)))
