"""A round of `rlmix.ops.source_labelling` as one Triton kernel, with the exact solver inside.

One program serves one partition: it visits all outputs of the round one after the other, each by the steps of
`rlmix.ops.source_labelling.Exact` (the nearest labels, beliefs, dynamic programming over rows of cells, the way back).
A partition's steps wait for each other, so what is parallel is inside a step: messages, and labellings of a row of
cells, are the lanes of the program. What lanes pass to each other goes through a small scratch memory in the caches.

All sums are in float64. The labels are those of `Exact` but for ties, up to the order of sums, about 1e-15 of the
largest cost: of labellings that cost the same, and of labels that come equally near where more of them are the cheapest
somewhere than are kept. Which of equal values `topk` takes torch leaves open; here it is the first in order.

Needs Triton, and a GPU unless TRITON_INTERPRET=1 was set before the first import.
"""

# The kernels are written in Triton's language, which only looks like Python: their arguments have no Python types.
# mypy: disable-error-code="assignment,import-not-found,import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Partitions of any usual size have one shape in the kernel, so that it is compiled once.
_LANES = 32
_WARPS = 8


@triton.jit
def _order(value, place):
    """Return the rank [n] of each of the values [n], the lower place first where they are equal."""
    above, left = value[:, None], value[None, :]
    first = (above < left) | ((above == left) & (place[:, None] < place[None, :]))
    return tl.sum(first.to(tl.int32), 0)


@triton.jit
def _prices(
    weights, compatibility, others, threshold, count, labels,
    soft: tl.constexpr, count_lanes: tl.constexpr, label_lanes: tl.constexpr,
):  # fmt: skip
    """Return what each label costs because the other outputs use `others` [count_lanes], [label_lanes]."""
    one, two = tl.arange(0, count_lanes)[:, None], tl.arange(0, count_lanes)[None, :]
    known = tl.load(compatibility + one * count + two, mask=(one < count) & (two < count), other=0.0)
    met = tl.sum(known * others[None, :], 1)
    pressure = tl.where(met > threshold, met - threshold, 0.0) if soft else tl.where(met > threshold, others, 0.0)
    label = tl.arange(0, label_lanes)[:, None]
    weight = tl.load(weights + label * count + two, mask=(label < labels) & (two < count), other=0.0)
    return tl.sum(weight * pressure[None, :], 1)


@triton.jit
def _keep(
    costs, price, prices, nearest, labels,
    kept: tl.constexpr, cells: tl.constexpr, cell_lanes: tl.constexpr, label_lanes: tl.constexpr,
):  # fmt: skip
    """Write the labels that come nearest to the cheapest one somewhere into `nearest`, and all prices."""
    cell, label = tl.arange(0, cell_lanes)[:, None], tl.arange(0, label_lanes)
    row = label[None, :]
    unary = tl.load(costs + cell * labels + row, mask=(cell < cells) & (row < labels), other=0.0) + price[None, :]
    unary = tl.where(row < labels, unary, float("inf"))
    above = tl.where(cell < cells, unary - tl.min(unary, 1)[:, None], float("inf"))
    rank = _order(tl.min(above, 0), label)
    tl.store(nearest + rank, label, mask=rank < kept)
    tl.store(prices + label, price)
    tl.debug_barrier()


@triton.jit
def _candidates(
    costs, smooth, prices, nearest, messages, candidate, candidate_costs, labels,
    height: tl.constexpr, width: tl.constexpr, cell_lanes: tl.constexpr, kept_lanes: tl.constexpr,
    kept: tl.constexpr, sweeps: tl.constexpr, candidates: tl.constexpr,
):  # fmt: skip
    """Write each cell's labels of the best beliefs, and what they cost, [cells, candidates]."""
    cells: tl.constexpr = height * width
    place = tl.arange(0, kept_lanes)[None, :]
    label = tl.load(nearest + place, mask=place < kept, other=0)
    price = tl.load(prices + label, mask=place < kept, other=float("inf"))
    # A message for each cell and each side that it comes from: above, below, left, right.
    line = tl.arange(0, 4 * cell_lanes)[:, None]
    side, target = line // cell_lanes, line % cell_lanes
    down, across = tl.where(side < 2, 2 * side - 1, 0), tl.where(side < 2, 0, 2 * side - 5)
    row, column = target // width + down, target % width + across
    exists = (target < cells) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = row * width + column
    own = tl.load(costs + source * labels + label, mask=exists & (place < kept), other=0.0) + price
    totals = messages + 4 * cell_lanes * kept_lanes
    for sweep in range(sweeps):
        total = own
        for other in tl.static_range(4):
            # What came from the target does not go back to it: it came from the opposite side.
            passed = exists & ((side ^ 1) != other) & (sweep > 0)
            total += tl.load(messages + (other * cell_lanes + source) * kept_lanes + place, mask=passed, other=0.0)
        tl.store(totals + line * kept_lanes + place, total)
        tl.debug_barrier()
        message = tl.full((4 * cell_lanes, kept_lanes), float("inf"), tl.float64)
        for shown in tl.static_range(kept):
            between = tl.load(smooth + tl.load(nearest + shown) * labels + label, mask=place < kept, other=0.0)
            message = tl.minimum(message, tl.load(totals + line * kept_lanes + shown) + between)
        tl.store(messages + line * kept_lanes + place, tl.where(exists, message, 0.0))
        tl.debug_barrier()
    cell = tl.arange(0, cell_lanes)[:, None]
    unary = tl.load(costs + cell * labels + label, mask=(cell < cells) & (place < kept), other=0.0) + price
    belief = unary
    for other in tl.static_range(4):
        belief += tl.load(messages + (other * cell_lanes + cell) * kept_lanes + place)
    tl.store(totals + cell * kept_lanes + place, belief)
    tl.debug_barrier()
    rank = tl.full((cell_lanes, kept_lanes), 0, tl.int32)
    for shown in tl.static_range(kept):
        rival = tl.load(totals + cell * kept_lanes + shown)
        rank += ((rival < belief) | ((rival == belief) & (shown < place))).to(tl.int32)
    found = (cell < cells) & (rank < candidates) & (place < kept)
    tl.store(candidate + cell * candidates + rank, tl.broadcast_to(label, rank.shape), mask=found)
    tl.store(candidate_costs + cell * candidates + rank, unary, mask=found)
    tl.debug_barrier()


@triton.jit
def _edges(
    smooth, candidate, across, down, labels,
    height: tl.constexpr, width: tl.constexpr, candidates: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Write the costs between candidates of neighbouring cells, [cells, candidates, candidates] each."""
    edge = tl.arange(0, lanes)
    cell, one, two = edge // (candidates * candidates), edge // candidates % candidates, edge % candidates
    inside = cell < height * width
    label = tl.load(candidate + cell * candidates + one, mask=inside, other=0)
    exists = inside & (cell % width < width - 1)
    right = tl.load(candidate + (cell + 1) * candidates + two, mask=exists, other=0)
    tl.store(across + edge, tl.load(smooth + label * labels + right, mask=exists, other=0.0), mask=exists)
    exists = inside & (cell < (height - 1) * width)
    below = tl.load(candidate + (cell + width) * candidates + two, mask=exists, other=0)
    tl.store(down + edge, tl.load(smooth + label * labels + below, mask=exists, other=0.0), mask=exists)
    tl.debug_barrier()


@triton.jit
def _write_rows(
    candidate_costs, across, least,
    height: tl.constexpr, width: tl.constexpr, candidates: tl.constexpr,
    rest_lanes: tl.constexpr, last_lanes: tl.constexpr,
):  # fmt: skip
    """Write the cost of every labelling of each row of cells by itself, [height, states]."""
    states: tl.constexpr = candidates**width
    rest, last = tl.arange(0, rest_lanes), tl.arange(0, last_lanes)
    inside = rest < candidates ** (width - 1)
    both = inside[:, None] & (last < candidates)[None, :]
    for row in range(height):
        first = row * width
        before = rest // candidates ** (width - 2) % candidates
        cost = tl.load(candidate_costs + first * candidates + before, mask=inside, other=0.0)
        for column in tl.static_range(1, width - 1):
            own = rest // candidates ** (width - 2 - column) % candidates
            edge = across + ((first + column - 1) * candidates + before) * candidates + own
            step = tl.load(edge, mask=inside, other=0.0)
            step += tl.load(candidate_costs + (first + column) * candidates + own, mask=inside, other=0.0)
            cost += step
            before = own
        edge = across + ((first + width - 2) * candidates + before[:, None]) * candidates + last[None, :]
        step = tl.load(edge, mask=both, other=0.0)
        own = tl.load(candidate_costs + (first + width - 1) * candidates + last, mask=last < candidates, other=0.0)
        state = row * states + rest[:, None] * candidates + last[None, :]
        tl.store(least + state, cost[:, None] + (step + own[None, :]), mask=both)
    tl.debug_barrier()


@triton.jit
def _add_rows_above(
    down, least,
    height: tl.constexpr, width: tl.constexpr, candidates: tl.constexpr,
    rest_lanes: tl.constexpr, last_lanes: tl.constexpr,
):  # fmt: skip
    """Add the least cost of all rows above to the cost of every labelling of each row, [height + 2, states].

    One after the other, the cells of the row above give way to the cells below them; the tables in between alternate
    in the last two places.
    """
    rests: tl.constexpr = candidates ** (width - 1)
    states: tl.constexpr = candidates**width
    rest, last = tl.arange(0, rest_lanes), tl.arange(0, last_lanes)
    both = (rest < rests)[:, None] & (last < candidates)[None, :]
    state = rest[:, None] * candidates + last[None, :]
    for cell in range((height - 1) * width):
        row, column = cell // width, cell % width
        before = least + tl.where(column == 0, row, height + (column + 1) % 2) * states + rest
        after = least + tl.where(column == width - 1, row + 1, height + column % 2) * states + state
        best = tl.full((rest_lanes, last_lanes), float("inf"), tl.float64)
        for old in tl.static_range(candidates):
            above = tl.load(before + old * rests, mask=rest < rests, other=0.0)
            edge = down + (cell * candidates + old) * candidates + last
            step = tl.load(edge, mask=last < candidates, other=0.0)
            best = tl.minimum(best, above[:, None] + step[None, :])
        own = tl.load(after, mask=both & (column == width - 1), other=0.0)
        tl.store(after, best + own, mask=both)
        tl.debug_barrier()


@triton.jit
def _trace(
    candidate, down, least,
    height: tl.constexpr, width: tl.constexpr, candidates: tl.constexpr,
    cell_lanes: tl.constexpr, state_lanes: tl.constexpr,
):  # fmt: skip
    """Return the best label of each cell, [cell_lanes], read from the last row upwards."""
    states: tl.constexpr = candidates**width
    state = tl.arange(0, state_lanes)
    inside = state < states
    cell = tl.arange(0, cell_lanes)
    best = tl.argmin(tl.load(least + (height - 1) * states + state, mask=inside, other=float("inf")), 0)
    shown = tl.where(cell // width == height - 1, best, 0)
    for step in range(1, height):
        row = height - 1 - step
        cost = tl.full((state_lanes,), 0.0, tl.float64)
        for column in tl.static_range(width):
            own = state // candidates ** (width - 1 - column) % candidates
            below = best // candidates ** (width - 1 - column) % candidates
            edge = down + ((row * width + column) * candidates + own) * candidates + below
            cost += tl.load(edge, mask=inside, other=0.0)
        cost += tl.load(least + row * states + state, mask=inside, other=float("inf"))
        best = tl.argmin(cost, 0)
        shown = tl.where(cell // width == row, best, shown)
    digit = shown
    for column in tl.static_range(width):
        own = shown // candidates ** (width - 1 - column) % candidates
        digit = tl.where(cell % width == column, own, digit)
    return tl.load(candidate + cell * candidates + digit, mask=cell < height * width, other=0)


@triton.jit(do_not_specialize=["count", "labels"])
def _visit(
    chosen, after, costs, smooth, shares, weights, compatibility, uses, threshold, reals, integers,
    count, labels, soft: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
    kept: tl.constexpr, sweeps: tl.constexpr, candidates: tl.constexpr,
    count_lanes: tl.constexpr, label_lanes: tl.constexpr, kept_lanes: tl.constexpr, cell_lanes: tl.constexpr,
    edge_lanes: tl.constexpr, rest_lanes: tl.constexpr, last_lanes: tl.constexpr, state_lanes: tl.constexpr,
    reals_size: tl.constexpr, integers_size: tl.constexpr,
):  # fmt: skip
    """Visit every output of one partition once."""
    cells: tl.constexpr = height * width
    part = tl.program_id(0).to(tl.int64)
    prices = reals + part * reals_size
    messages = prices + label_lanes
    candidate_costs = messages + 8 * cell_lanes * kept_lanes
    across = candidate_costs + cells * candidates
    down = across + cells * candidates * candidates
    least = down + cells * candidates * candidates
    nearest = integers + part * integers_size
    candidate = nearest + kept_lanes
    limit = tl.load(threshold)
    compatibility += part * count * count
    one = tl.arange(0, count_lanes)
    cell = tl.arange(0, cell_lanes)
    total = tl.full((count_lanes,), 0.0, tl.float64)
    for output in range(count):
        total += tl.load(uses + (part * count + output) * count + one, mask=one < count, other=0.0)
    for output in range(count):
        number = part * count + output
        own_costs = costs + number * cells * labels
        own_smooth = smooth + number * labels * labels
        others = total - tl.load(uses + number * count + one, mask=one < count, other=0.0)
        price = _prices(
            weights + number * labels * count, compatibility, others, limit, count, labels,
            soft, count_lanes, label_lanes,
        )  # fmt: skip
        _keep(own_costs, price, prices, nearest, labels, kept, cells, cell_lanes, label_lanes)
        _candidates(
            own_costs, own_smooth, prices, nearest, messages, candidate, candidate_costs, labels,
            height, width, cell_lanes, kept_lanes, kept, sweeps, candidates,
        )  # fmt: skip
        _edges(own_smooth, candidate, across, down, labels, height, width, candidates, edge_lanes)
        _write_rows(candidate_costs, across, least, height, width, candidates, rest_lanes, last_lanes)
        _add_rows_above(down, least, height, width, candidates, rest_lanes, last_lanes)
        label = _trace(candidate, down, least, height, width, candidates, cell_lanes, state_lanes)
        tl.store(chosen + number * cells + cell, label.to(tl.int64), mask=cell < cells)
        shown = shares + (number * labels + label[:, None]) * count + one[None, :]
        now = tl.load(shown, mask=(cell < cells)[:, None] & (one < count)[None, :], other=0.0)
        now = tl.sum(now, 0)
        tl.store(after + number * count + one, now, mask=one < count)
        total = others + now
        tl.debug_barrier()


def visit_into(
    chosen: Tensor,
    after: Tensor,
    costs: Tensor,
    smooth: Tensor,
    shares: Tensor,
    weights: Tensor,
    compatibility: Tensor,
    uses: Tensor,
    threshold: float,
    soft: bool,
    size: tuple[int, int],
    limits: tuple[int, int, int],
) -> None:
    """Visit every output of every partition once, in one launch. All tensors are contiguous and on one device.

    Args:
        chosen: int64 [P, m, cells], the labels, written.
        after: float64 [P, m, m], the uses then, written; not `uses` itself.
        costs: float64 [P, m, cells, L].
        smooth: float64 [P, m, L, L], symmetric.
        shares: float64 [P, m, L, m].
        weights: float64 [P, m, L, m], what a unit of pressure of each input costs each label.
        compatibility: float64 [P, m, m].
        uses: float64 [P, m, m], at first.
        threshold: t.
        soft: whether only what is above the threshold counts.
        size: rows and columns of the grid, at least 2 each.
        limits: labels that are kept of all, sweeps of the messages, labels that are kept in each cell (not more than
            the first, nor than L).
    """
    arguments = _described(costs, uses, size, limits)
    partitions, device = costs.shape[0], costs.device
    reals = torch.empty(partitions, arguments["reals_size"], dtype=torch.float64, device=device)
    integers = torch.empty(partitions, arguments["integers_size"], dtype=torch.int32, device=device)
    # A number would reach the kernel as float32.
    limit = torch.full((1,), threshold, dtype=torch.float64, device=device)
    tensors = (chosen, after, costs, smooth, shares, weights, compatibility, uses, limit, reals, integers)
    with torch.cuda.device(costs.get_device()):
        _visit[(partitions,)](*tensors, soft=soft, **arguments)


def _described(costs: Tensor, uses: Tensor, size: tuple[int, int], limits: tuple[int, int, int]) -> dict[str, Any]:
    """Return what the kernel is told of the problems' shape, and how it is launched."""
    count, (cells, labels) = uses.shape[2], costs.shape[2:]
    height, width = size
    kept, sweeps, candidates = limits
    cell_lanes, kept_lanes = triton.next_power_of_2(cells), triton.next_power_of_2(kept)
    label_lanes = max(_LANES, triton.next_power_of_2(labels))
    edges, states = cells * candidates**2, candidates**width
    return {
        "count": count,
        "labels": labels,
        "kept": min(kept, labels),
        "height": height,
        "width": width,
        "sweeps": sweeps,
        "candidates": candidates,
        "count_lanes": max(_LANES, triton.next_power_of_2(count)),
        "label_lanes": label_lanes,
        "kept_lanes": kept_lanes,
        "cell_lanes": cell_lanes,
        "edge_lanes": triton.next_power_of_2(edges),
        "rest_lanes": triton.next_power_of_2(candidates ** (width - 1)),
        "last_lanes": triton.next_power_of_2(candidates),
        "state_lanes": triton.next_power_of_2(states),
        # As the kernel lays them out: prices, messages, candidates' costs, costs between them, tables of states.
        "reals_size": label_lanes
        + 8 * cell_lanes * kept_lanes
        + cells * candidates
        + 2 * edges
        + (height + 2) * states,
        "integers_size": kept_lanes + cells * candidates,
        "num_warps": _WARPS,
        # Every product is rounded, as in torch and in the interpreter.
        "enable_fp_fusion": False,
    }
