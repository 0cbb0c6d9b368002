"""Which inputs each output of a partition shows in each cell: Co-Mixup's optimisation, in plain tensor code.

Kim, Choo, Jeong, Song 2021, https://arxiv.org/abs/2102.03065, Algorithm 1, as in the authors' code. A partition has m
inputs and m outputs. z[o, p, k] is the share of input k in cell p of output o, n_o[k] its sum over the cells and P_o
the sum of all n but n_o. The outputs are visited one after the other, each by an inner problem

    E_o = sum_p U[p, l_p] + b * sum over neighbouring cells of V(l_p, l_q)

over labels l: the inputs, and in later rounds halves of two inputs that the output shows already. U holds the negative
saliency and the price of inputs that the other outputs use too much; V is 0 for equal labels, 1/4 between two halves
and one of their members, else 1. All partitions go side by side, and nothing is read back from a device.

The tensor code here is the reference. On a CUDA device with Triton, rounds with the exact solver are carried out by the
kernel of `rlmix.ops.source_labelling_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor

from rlmix.ops.blend import has_kernels

# What the authors' code takes off the mean of two inputs' costs for showing halves of both.
HALVES_BONUS = 5e-4
# A half and one of its members differ by a quarter of what two inputs do: the squared distance of their shares, halved.
MEMBER_COST = 0.25
# How many labels the solvers look at: more are hardly ever near the cheapest anywhere.
KEPT = 10
# How many cells far messages go where no exact search follows.
_CARRIED = 10
# The chance of a cell to start with its second-best label.
SECOND_BEST = 0.3
# An output shows halves of at most this many of its inputs.
_MOST_USED = 3
# The kernel holds the prices of all labels, and the costs of all labellings of a row of cells, in its registers.
_FUSED_LABELS, _FUSED_STATES = 64, 1024

Inner = Callable[[Tensor, Tensor], Tensor]
"""Solves inner problems: (U [P, cells, L], b * V [P, L, L]) -> labels int64 [P, cells]."""


@final
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Instance:
    """P problems of m inputs and m outputs each, on one grid.

    Args:
        costs: float64 [P, m, cells], what an input costs in a cell: negative saliency and the prior.
        compatibility: float64 [P, m, m], symmetric: how much two inputs are kept out of the same place.
        smoothness: b, the cost of two neighbouring cells that show different inputs.
        diversity: g, the price of what the other outputs use too.
        threshold: t, the use by the other outputs (in cells) up to which an input is free.
        soft_threshold: charge what is above the threshold only, instead of all.
        soft_labels: allow halves of two inputs from the second round on.
        resolve: push outputs apart that show the same inputs before the last round.
        rounds: how often every output is visited.
    """

    costs: Tensor
    compatibility: Tensor
    smoothness: float
    diversity: float
    threshold: float
    soft_threshold: bool
    soft_labels: bool
    resolve: bool
    rounds: int


@final
@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The labels that the outputs may take in one round, and what they cost before the other outputs are counted.

    Args:
        members: int64 [P, m, L, 2], the two inputs of each label; twice the same for a whole input.
        shares: [P, m, L, m], the share of each input in each label.
        costs: [P, m, cells, L]; infinite for a label that is not to be had.
        smooth: [P, m, L, L], b * V.
    """

    members: Tensor
    shares: Tensor
    costs: Tensor
    smooth: Tensor


Visit = Callable[[Instance, Labels, Tensor], tuple[Tensor, Tensor]]
"""Visits every output once: (problems, labels, uses [P, m, m]) -> chosen int64 [P, m, cells], uses then [P, m, m]."""


def solve(instance: Instance, initial: Tensor, visit: Visit) -> Tensor:
    """Visit every output of every partition in turn, `rounds` times, and return what they show.

    Args:
        instance: the problems.
        initial: int64 [P, m, cells], the input that each output shows in each cell at first.
        visit: carries out a round, `one_by_one` or its compiled form.

    Returns:
        int64 [P, m, cells, 2]: the two inputs that are shown by halves in a cell; twice the same for a whole input.
    """
    count = initial.shape[1]
    inputs = torch.arange(count, device=initial.device)
    uses = (initial.unsqueeze(-1) == inputs).double().sum(2)
    pushed = torch.zeros_like(instance.compatibility)
    shown = initial.unsqueeze(-1).expand(-1, -1, -1, 2)
    for turn in range(instance.rounds):
        labels = _whole_labels(instance, pushed)
        if turn > 0 and instance.soft_labels and count > 1:
            labels = _with_halves(instance, labels, uses)
        chosen, uses = visit(instance, labels, uses)
        shown = labels.members.gather(2, chosen.unsqueeze(-1).expand(-1, -1, -1, 2))
        if instance.resolve and turn == instance.rounds - 2:
            pushed = instance.diversity * _apart(uses)
    return shown


def one_by_one(inner: Inner) -> Visit:
    """Return what visits one output after the other, all partitions side by side, and solves by `inner`."""

    def visit(instance: Instance, labels: Labels, uses: Tensor) -> tuple[Tensor, Tensor]:
        weights = prices(instance, labels)
        if isinstance(inner, Exact) and inner.is_fused(labels):
            return inner.visit_fused(instance, labels, weights, uses)
        total = uses.sum(1)
        chosen, updated = [], []
        by_output = (uses, weights, labels.shares, labels.costs, labels.smooth)
        for used, weight, shares, costs, smooth in zip(*(tensor.unbind(1) for tensor in by_output), strict=True):
            others = total - used
            unary = costs + torch.bmm(weight, _pressure(instance, others).unsqueeze(2)).transpose(1, 2)
            label = inner(unary, smooth)
            now = shares.gather(1, label.unsqueeze(-1).expand(-1, -1, shares.shape[2])).sum(1)
            total = others + now
            chosen.append(label)
            updated.append(now)
        return torch.stack(chosen, 1), torch.stack(updated, 1)

    return visit


def prices(instance: Instance, labels: Labels) -> Tensor:
    """Return what each label costs for a unit of pressure of each input, [P, m, L, m].

    The hard rule cuts the others' uses off at the threshold before the compatibility weighs them, as the authors' code
    has it; the soft rule weighs them first.
    """
    weights = 2.0 * instance.diversity * labels.shares
    if instance.soft_threshold:
        return weights
    return torch.bmm(weights.flatten(1, 2), instance.compatibility).view_as(weights)


def _pressure(instance: Instance, others: Tensor) -> Tensor:
    """Return what the others' uses [P, m] come to above the threshold, to be weighed by `prices`."""
    met = torch.bmm(instance.compatibility, others.unsqueeze(2)).squeeze(2)
    if instance.soft_threshold:
        return (met - instance.threshold).clamp_min(0.0)
    return others * (met > instance.threshold)


def _whole_labels(instance: Instance, pushed: Tensor) -> Labels:
    """Return the inputs as labels, `pushed` [P, m, m] charged for in every cell of an output."""
    partitions, count, _ = instance.costs.shape
    device = instance.costs.device
    inputs = torch.arange(count, device=device).view(1, 1, count, 1)
    shares = torch.eye(count, dtype=torch.float64, device=device)
    return Labels(
        inputs.expand(partitions, count, count, 2),
        shares.expand(partitions, count, count, count),
        instance.costs.transpose(1, 2).unsqueeze(1) + pushed.unsqueeze(2),
        (instance.smoothness * (1.0 - shares)).expand(partitions, count, count, count),
    )


def _with_halves(instance: Instance, whole: Labels, uses: Tensor) -> Labels:
    """Add halves of the inputs that each output uses most: one label for two inputs, three for three or more.

    `uses` are multiples of 1/2; of inputs used equally often the first in order counts.
    """
    count = uses.shape[2]
    most = min(_MOST_USED, count)
    inputs = torch.arange(count, device=uses.device)
    top = (2.0 * count * uses + inputs.flip(0)).topk(most, 2).indices
    used = uses.gather(2, top) > 0
    first, second = (list(side) for side in zip(*combinations(range(most), 2), strict=True))
    members = torch.stack([torch.stack([top[:, :, slot] for slot in side], 2) for side in (first, second)], 3)
    # The pairs stand in the order of their second, less used member: it decides whether there is such a label.
    missing = ~torch.stack([used[:, :, slot] for slot in second], 2)
    pairs = (members.unsqueeze(-1) == inputs).double().sum(3) / 2.0
    costs = (whole.costs @ pairs.transpose(2, 3) - HALVES_BONUS).masked_fill(missing.unsqueeze(2), torch.inf)
    member = instance.smoothness * (1.0 - (1.0 - MEMBER_COST) * (pairs > 0).double())
    between = instance.smoothness * (1.0 - torch.eye(len(first), dtype=torch.float64, device=uses.device))
    rows = torch.cat([whole.smooth, member], 2)
    columns = torch.cat([member.transpose(2, 3), between.expand(*uses.shape[:2], -1, -1)], 2)
    return Labels(
        torch.cat([whole.members, members], 2),
        torch.cat([whole.shares, pairs], 2),
        torch.cat([whole.costs, costs], 3),
        torch.cat([rows, columns], 3),
    )


def _apart(uses: Tensor) -> Tensor:
    """Return 1 where an output is to be kept from an input, [P, m, m], because another output shows the same inputs.

    Of outputs with the same set of at least two inputs, all but the last avoid its first member, all but the first its
    second.
    """
    used = (uses > 0).double()
    sizes = used.sum(2)
    common = used @ used.transpose(1, 2)
    same = (common == sizes.unsqueeze(1)) & (common == sizes.unsqueeze(2)) & (sizes > 1).unsqueeze(2)
    rank = used.cumsum(2) * used
    return (same.triu(1).any(2).unsqueeze(2) * (rank == 1) + same.tril(-1).any(2).unsqueeze(2) * (rank == 2)).double()


@final
class _Beliefs:
    """What a label comes to in a cell together with its surroundings, as far as messages between neighbours carry it.

    Min-sum belief propagation, all messages at once in each sweep (Pearl 1988; exact on trees, near on grids).

    Args:
        height: rows of the grid.
        width: columns of the grid, at least 2 cells in all.
        device: where the inner problems live.
        sweeps: how far messages are carried, in cells.
    """

    def __init__(self, height: int, width: int, device: torch.device, sweeps: int) -> None:
        cells = torch.arange(height * width, device=device).view(height, width)
        across, down = torch.stack([cells[:, :-1], cells[:, 1:]], 2), torch.stack([cells[:-1], cells[1:]], 2)
        pairs = torch.cat([across.view(-1, 2), down.view(-1, 2)])
        self._source, target = torch.cat([pairs, pairs.flip(1)]).unbind(1)
        arrives, returns = target == self._source.unsqueeze(1), self._source == target.unsqueeze(1)
        # A message is made of those that arrive at its source, but for the one that comes from its target.
        self._passed = (arrives & ~returns).double()
        self._received = (target == cells.view(-1, 1)).double()
        self._sweeps = sweeps

    def __call__(self, unary: Tensor, smooth: Tensor) -> Tensor:
        """Return the beliefs [P, cells, L] of the last sweep, for U [P, cells, L] and b * V [P, L, L]."""
        return self._received_in(unary, self._messages(unary, smooth)[-1])

    def best(self, unary: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best labels after each sweep [P, sweeps, cells], and the last one's best and second best."""
        beliefs = [self._received_in(unary, message) for message in self._messages(unary, smooth)]
        first, second = beliefs[-1].topk(2, 2, largest=False).indices.unsqueeze(1).unbind(3)
        return torch.stack([belief.argmin(2) for belief in beliefs], 1), first, second

    def _messages(self, unary: Tensor, smooth: Tensor) -> list[Tensor]:
        """Return the messages [P, edges, L] of every sweep."""
        own = unary.index_select(1, self._source)
        smooth = smooth.unsqueeze(1)
        passed = self._passed.expand(own.shape[0], -1, -1)
        messages = [(own.unsqueeze(2) + smooth).amin(3)]
        for _ in range(self._sweeps - 1):
            total = torch.baddbmm(own, passed, messages[-1])
            messages.append((total.unsqueeze(2) + smooth).amin(3))
        return messages

    def _received_in(self, unary: Tensor, message: Tensor) -> Tensor:
        return torch.baddbmm(unary, self._received.expand(unary.shape[0], -1, -1), message)


@final
class Exact:
    """Solve inner problems on small grids by dynamic programming over rows of cells.

    Three steps. Of all labels, the `kept` remain that come nearest to the cheapest one somewhere. Beliefs say what each
    of them comes to with its surroundings, and the `candidates` best of each cell remain. Among these the result is
    exact: the least
    cost of all rows above, for every labelling of a row, is carried down by one minimum a column, and the best
    labelling is read back from the last row upwards.

    The first two steps are there for speed; the benchmarks say how seldom they miss the optimum.

    Args:
        height: rows of the grid.
        width: columns of the grid, at least 2 cells in all.
        inputs: m, of a partition.
        device: where the inner problems live.
        kept: labels that are kept of all.
        sweeps: of the messages that make the beliefs.
        candidates: labels that are kept in each cell; the work grows with candidates ** width.
    """

    def __init__(
        self,
        height: int,
        width: int,
        inputs: int,
        device: torch.device,
        *,
        kept: int = KEPT,
        sweeps: int = 4,
        candidates: int = 5,
    ) -> None:
        self._height, self._width = height, width
        candidates = min(candidates, inputs)
        self._kept, self._candidates, self._sweeps = kept, candidates, sweeps
        self._beliefs = _Beliefs(height, width, device, sweeps)
        states = torch.arange(candidates**width, device=device)
        self._places = torch.stack([states // candidates**power % candidates for power in range(width - 1, -1, -1)], 1)

    def __call__(self, unary: Tensor, smooth: Tensor) -> Tensor:
        """Return labels int64 [P, cells] of least cost, for U [P, cells, L] and b * V [P, L, L]."""
        return _among_nearest(self._kept, unary, smooth, self._solve)

    def is_fused(self, labels: Labels) -> bool:
        """Say whether the kernel visits outputs that may take these labels."""
        costs, states = labels.costs, self._places.shape[0]
        small = costs.shape[3] <= _FUSED_LABELS and states <= _FUSED_STATES and min(self._height, self._width) > 1
        return costs.is_cuda and small and has_kernels(costs.device)

    def visit_fused(self, instance: Instance, labels: Labels, weights: Tensor, uses: Tensor) -> tuple[Tensor, Tensor]:
        """Visit every output once by the kernel; `weights` [P, m, L, m] are the `prices`."""
        tensors = (labels.costs, labels.smooth, labels.shares, weights, instance.compatibility, uses)
        chosen, after = torch.ops.rlmix.visit_outputs.default(
            *(tensor.contiguous() for tensor in tensors),
            instance.threshold,
            instance.soft_threshold,
            (self._height, self._width),
            (self._kept, self._sweeps, self._candidates),
        )
        return chosen, after

    def _solve(self, unary: Tensor, smooth: Tensor) -> Tensor:
        """Return the labels as int64 [P, cells, 1]."""
        candidates = self._candidates
        label = self._beliefs(unary, smooth).topk(candidates, 2, largest=False, sorted=False).indices
        across, down = self._edges(label, smooth)
        rows = self._rows(unary.gather(2, label).view(-1, self._height, self._width, candidates), across)
        least = [rows[:, 0]]
        for row in range(1, self._height):
            above = least[-1]
            for column in range(self._width):
                steps = above.view(-1, candidates, candidates ** (self._width - 1), 1) + down[:, row - 1, column]
                above = steps.amin(1)
            least.append(above.view(-1, candidates**self._width) + rows[:, row])
        return label.gather(2, self._trace(least, down))

    def _edges(self, label: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the costs between the candidates of neighbouring cells.

        Left to right [P, h, w - 1, k, k], and downwards [P, h - 1, w, k, 1, k].
        """
        labels, candidates = smooth.shape[2], label.shape[2]
        cells = label.view(-1, self._height, self._width, candidates)
        smooth = smooth.flatten(1)

        def between(one: Tensor, two: Tensor) -> Tensor:
            index = torch.add(two.unsqueeze(-2), one.unsqueeze(-1), alpha=labels)
            return smooth.gather(1, index.flatten(1)).view(index.shape)

        return between(cells[:, :, :-1], cells[:, :, 1:]), between(cells[:, :-1], cells[:, 1:]).unsqueeze(-2)

    def _rows(self, cost: Tensor, across: Tensor) -> Tensor:
        """Return the cost of every labelling of every row, [P, h, k ** w], the last cell changing fastest."""
        candidates = cost.shape[3]
        rows = cost[:, :, 0]
        steps = across + cost[:, :, 1:].unsqueeze(-2)
        for column in range(self._width - 1):
            rows = rows.view(-1, self._height, candidates**column, candidates, 1) + steps[:, :, None, column]
        return rows.view(-1, self._height, candidates**self._width)

    def _trace(self, least: list[Tensor], down: Tensor) -> Tensor:
        """Read the best candidate of each cell, int64 [P, cells, 1], from the last row upwards."""
        candidates, width = down.shape[-1], self._width
        chosen = [self._places.index_select(0, least[-1].argmin(1))]
        for row in range(self._height - 2, -1, -1):
            below = chosen[-1].view(-1, width, 1, 1).expand(-1, -1, candidates, 1)
            edge = down[:, row].squeeze(3).gather(3, below)
            cost = edge[:, 0]
            for column in range(1, width):
                cost = cost.view(-1, candidates**column, 1) + edge[:, column].view(-1, 1, candidates)
            state = (cost.view(-1, candidates**width) + least[row]).argmin(1)
            chosen.append(self._places.index_select(0, state))
        return torch.stack(chosen[::-1], 1).view(least[0].shape[0], -1, 1)


@final
class Multistart:
    """Solve inner problems on grids of any size nearly exactly: iterated conditional modes from many starts.

    Besag 1986, https://doi.org/10.1111/j.2517-6161.1986.tb01412.x: in turn, all cells of one colour of a checkerboard
    take the best label for what their neighbours show. It starts from the labels that beliefs say are best after each
    sweep, from the last of these with some cells at their second best, and from each label everywhere; the best end
    counts.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        chances: [P, S, cells] in [0, 1), uniform: in each of S starts, cells below `SECOND_BEST` take that label.
        kept: labels that are kept of all, those that come nearest to the cheapest one somewhere.
    """

    def __init__(self, height: int, width: int, chances: Tensor, *, kept: int = KEPT) -> None:
        rows, columns = (torch.arange(side, device=chances.device) for side in (height, width))
        self._dark = ((rows.unsqueeze(1) + columns) % 2 == 0).flatten()
        self._height, self._width = height, width
        self._beliefs = _Beliefs(height, width, chances.device, _CARRIED)
        self._second, self._kept = chances < SECOND_BEST, kept

    def __call__(self, unary: Tensor, smooth: Tensor) -> Tensor:
        """Return labels int64 [P, cells] of low cost, for U [P, cells, L] and b * V [P, L, L]."""
        return _among_nearest(self._kept, unary, smooth, self._solve)

    def _solve(self, unary: Tensor, smooth: Tensor) -> Tensor:
        """Return the labels as int64 [P, cells, 1]."""
        partitions, cells, labels = unary.shape
        constant = torch.arange(labels, device=unary.device).view(1, -1, 1).expand(partitions, -1, cells)
        each, best, second = self._beliefs.best(unary, smooth)
        label = torch.cat([each, torch.where(self._second, second, best), constant], 1)
        unary = unary.unsqueeze(1)
        # A half sweep carries information by a cell: enough for the longest way.
        for sweep in range(self._height + self._width):
            better = (unary + self._around(label, smooth)).argmin(3)
            label = torch.where(self._dark if sweep % 2 else ~self._dark, better, label)
        cost = (unary + 0.5 * self._around(label, smooth)).gather(3, label.unsqueeze(3)).sum((2, 3))
        first = cost.argmin(1).view(-1, 1, 1).expand(-1, 1, cells)
        return label.gather(1, first).transpose(1, 2)

    def _around(self, label: Tensor, smooth: Tensor) -> Tensor:
        """Return what each label would cost beside the labels [P, S, cells] of its neighbours, [P, S, cells, L]."""
        labels = smooth.shape[2]
        beside = smooth.gather(1, label.flatten(1).unsqueeze(2).expand(-1, -1, labels))
        beside = beside.view(*label.shape[:2], self._height, self._width, labels)
        around = torch.zeros_like(beside)
        around[:, :, 1:] += beside[:, :, :-1]
        around[:, :, :-1] += beside[:, :, 1:]
        around[:, :, :, 1:] += beside[:, :, :, :-1]
        around[:, :, :, :-1] += beside[:, :, :, 1:]
        return around.flatten(2, 3)


def _visit_outputs(costs: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    from rlmix.ops import source_labelling_triton

    chosen, after = _empty_visit(costs)
    source_labelling_triton.visit_into(chosen, after, costs, *given)
    return chosen, after


def _empty_visit(costs: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Return room for the labels int64 [P, m, cells] and the uses [P, m, m]."""
    partitions, count, cells = costs.shape[:3]
    return costs.new_empty(partitions, count, cells, dtype=torch.int64), costs.new_empty(partitions, count, count)


# An operator of its own, so that its outputs have shapes without data too.
torch.library.define(
    "rlmix::visit_outputs",
    "(Tensor costs, Tensor smooth, Tensor shares, Tensor weights, Tensor compatibility, Tensor uses, float threshold, "
    "bool soft, SymInt[] size, SymInt[] limits) -> (Tensor, Tensor)",
)
torch.library.impl("rlmix::visit_outputs", "default", _visit_outputs)
torch.library.register_fake("rlmix::visit_outputs", _empty_visit)


def _among_nearest(kept: int, unary: Tensor, smooth: Tensor, solve_kept: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Solve among the `kept` labels that come nearest to the cheapest one somewhere; int64 [P, cells]."""
    labels = unary.shape[2]
    if labels <= kept:
        return solve_kept(unary, smooth).squeeze(2)
    nearest = (unary - unary.amin(2, keepdim=True)).amin(1)
    known = nearest.topk(kept, 1, largest=False, sorted=False).indices
    index = torch.add(known.unsqueeze(1), known.unsqueeze(2), alpha=labels)
    smooth = smooth.flatten(1).gather(1, index.flatten(1)).view(index.shape)
    known = known.unsqueeze(1).expand(-1, unary.shape[1], -1)
    return known.gather(2, solve_kept(unary.gather(2, known), smooth)).squeeze(2)


def inner_energy(unary: Tensor, smooth: Tensor, labels: Tensor, height: int, width: int) -> Tensor:
    """Return E of inner problems, [P]: for U [P, cells, L], b * V [P, L, L] and labels int64 [P, cells]."""
    grid = labels.view(-1, height, width)
    part = torch.arange(labels.shape[0], device=labels.device).view(-1, 1, 1)
    across = smooth[part, grid[:, :, 1:], grid[:, :, :-1]].sum((1, 2))
    down = smooth[part, grid[:, 1:], grid[:, :-1]].sum((1, 2))
    return unary.gather(2, labels.unsqueeze(2)).sum((1, 2)) + across + down


def energy_parts(instance: Instance, shown: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the parts of the energies of whole partitions, float64 [P] each.

    Args:
        instance: the problems.
        shown: int64 [P, m, cells, 2], as `solve` returns it.
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        The costs; the smoothness (half the squared distance of neighbouring cells' shares, times b); the price of all
        that is used by several outputs, `g * (||sum_o n_o||**2 - sum_o ||n_o||**2)`, whatever the threshold; and the
        price of what is above the threshold, `g * sum_o sum_k 1[(A P_o)_k > t] (A P_o)_k n_o[k]`. The first three make
        up the energy that the published stop test looks at (E_0), the first two and the last one E_t.
    """
    count = shown.shape[1]
    inputs = torch.arange(count, device=shown.device)
    shares = (shown.unsqueeze(-1) == inputs).double().mean(3)
    costs = (shares * instance.costs.transpose(1, 2).unsqueeze(1)).sum((1, 2, 3))
    cells = shares.view(shares.shape[0], count, height, width, count)
    across = (cells[:, :, :, 1:] - cells[:, :, :, :-1]).square().sum((1, 2, 3, 4))
    down = (cells[:, :, 1:] - cells[:, :, :-1]).square().sum((1, 2, 3, 4))
    uses = shares.sum(2)
    total = uses.sum(1)
    shared = instance.diversity * (total.square().sum(1) - uses.square().sum((1, 2)))
    met = (total.unsqueeze(1) - uses) @ instance.compatibility
    above = instance.diversity * ((met > instance.threshold) * met * uses).sum((1, 2))
    return costs, instance.smoothness / 2.0 * (across + down), shared, above
