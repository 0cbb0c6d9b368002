"""Co-Mixup."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from rlmix.errors import InputError, MethodError
from rlmix.methods.method import (
    AbstractMethod,
    check_choice,
    check_positive,
    check_range,
    saliency_of,
    sides_of,
    usable,
)
from rlmix.ops import grid, rng
from rlmix.ops.gamma import dirichlet
from rlmix.ops.source_labelling import Exact, Instance, Multistart, Visit, one_by_one, solve
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

WINDOW = 8
"""Pixels along each side of the window whose most salient place the compatibility compares."""
EXACT_GRIDS = (2, 3, 4)
"""Cells per side for which the inner problems are solved by dynamic programming."""
STARTS = 8
"""Random starts of the solver for larger grids."""


@final
class Partitions(NamedTuple):
    """Problems of one size.

    Attributes:
        rows: int64 [P, m], the rows of the batch that each partition holds.
        instance: what is to be optimised.
        start: int64 [P, m, cells], what the outputs show at first.
        keys: int64 [G], what was drawn with; a group's partitions stand together.
    """

    rows: Tensor
    instance: Instance
    start: Tensor
    keys: Tensor


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CoMixup(AbstractMethod):
    """Mix many images into many, so that each output is salient and smooth and the outputs are unlike each other.

    The rows of a group are cut, in their order, into partitions of m inputs, which give m outputs. Each cell of an
    output shows one input, or two by halves; which ones is the solution of an optimisation over the whole partition,
    found by visiting its outputs one after the other (`rlmix.ops.source_labelling`):

        minimise   - sum of the saliency shown  -  eta * sum of log prior  +  beta * number of unlike neighbours
                   + gamma * what outputs show that others show too, where all others together show it for more than
                     `threshold` of an image

    Saliency is averaged on the grid and sums to 1 for each image, every sum is taken over cells and divided by their
    number, and the prior is one draw of Dirichlet(alpha) for each partition, over its inputs. The label follows the
    area. Output b stands in row b but belongs to input b in no other way: lam, the weight of the own label, may be 0.

    Use: where accuracy matters more than time and batches are large: what to show is solved for many images together.

    Source: Kim, Choo, Jeong, Song 2021, https://arxiv.org/abs/2102.03065, Algorithm 1, as in the authors' code. Unlike
    there, a group need not be divisible by the partition (the rest is a smaller one, a single row stays unmixed), maps
    without a finite value above 0 count as uniform, and all rounds are carried out (the authors' code may stop early).
    The authors find each output by a graph cut, which is not exact for more than two labels. At the default threshold
    diversity acts in partitions of 6 and more: by the others an image is shown (m - 1) / m times on average.

    Args:
        grid: cells along each side, at least 2.
        partition: m, the rows that are mixed with each other, at least 2; the published value is 20 (ImageNet: 16).
        beta: weight of smoothness.
        gamma: weight of diversity.
        threshold: how much of an image the other outputs may show, in images, before it costs anything.
        threshold_rule: "hard" charges for all that they show then, "soft" for what is above the threshold.
        eta: weight of the prior.
        omega: in [0, 1], how much of the diversity's weight compares inputs by how far apart their most salient places
            are; the rest compares an input with itself.
        rounds: how often every output is visited; the published value is 4 (ImageNet: 3).
        alpha: concentration of the prior, above 0.
        soft_labels: whether a cell may show two inputs by halves (from the second round on).
        resolve: push outputs apart that show the same inputs before the last round.
        solver: "exact" (dynamic programming, grids of 2 to 4), "icm" (any grid, many starts), "auto" (the first where
            it can, else the second), or "compiled" ("exact" by machine code, grids up to 4, tensors on the CPU, after
            `pip install rlmix[jit]`). "compiled" always finds the optimum of an inner problem, the others nearly always
            (the benchmarks say how often); after one that was missed, plans differ.
        scope: of the choice which rows are mixed at all; all other numbers are drawn for partitions.
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: a parameter out of its range.
        InputError: an image side smaller than the grid, or a compiled solver for tensors that are not on the CPU.
    """

    name: ClassVar[str] = "comixup"
    source: ClassVar[str] = "Kim et al. 2021, https://arxiv.org/abs/2102.03065 and its released code"

    grid: int = 4
    partition: int = 20
    beta: float = 0.32
    gamma: float = 1.0
    threshold: float = 0.83
    threshold_rule: Literal["hard", "soft"] = "hard"
    eta: float = 0.05
    omega: float = 0.001
    rounds: int = 4
    alpha: float = 2.0
    soft_labels: bool = True
    resolve: bool = True
    solver: Literal["auto", "exact", "icm", "compiled"] = "auto"

    @property
    def needs_saliency(self) -> bool:
        """True: the outputs show what is salient."""
        return True

    @property
    def rows_together(self) -> int:
        """The rows of a partition, whose outputs are found one after the other."""
        return self.partition

    def _check(self) -> None:
        for name, least in (("grid", 2), ("partition", 2), ("rounds", 1)):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or given < least:
                raise MethodError(f"`{name}` must be a whole number of at least {least}, got {given!r}.")
        for name in ("beta", "gamma", "threshold", "eta"):
            check_range(name, getattr(self, name), 0.0, math.inf)
        check_range("omega", self.omega, 0.0, 1.0)
        check_positive("alpha", self.alpha)
        check_choice("threshold_rule", self.threshold_rule, ("hard", "soft"))
        check_choice("solver", self.solver, ("auto", "exact", "icm", "compiled"))
        if self.solver in ("exact", "compiled") and self.grid not in EXACT_GRIDS:
            raise MethodError(
                f'`solver` {self.solver!r} serves grids of {EXACT_GRIDS} cells a side, got {self.grid}. Use "icm".'
            )
        if self.solver == "compiled" and importlib.util.find_spec("numba") is None:
            raise MethodError('`solver` "compiled" needs numba, which is not installed. Run: pip install rlmix[jit]')

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        parts = []
        for problem in self.problems(inputs, streams):
            shown = solve(problem.instance, problem.start, self._visit(problem))
            sources = problem.rows.gather(1, shown.flatten(1)).view(inputs.groups, -1, *shown.shape[2:])
            parts.append(sources)
        known = sum(part.shape[1] for part in parts)
        if known < inputs.group_size:
            # The single row that is left over shows itself.
            alone = torch.arange(inputs.batch_size, device=inputs.device).view(inputs.groups, -1, 1, 1)[:, known:]
            parts.append(alone.expand(-1, -1, self.grid * self.grid, 2))
        return self._as_plan(torch.cat(parts, 1).flatten(0, 1), inputs)

    def problems(self, inputs: MixInputs, streams: rng.Streams) -> list[Partitions]:
        """Return what is to be optimised: the partitions of full size of all groups, then the smaller ones.

        Args:
            inputs: of the batch, with saliency.
            streams: one key for each group, on the inputs' device.
        """
        if self.solver == "compiled" and torch.device(inputs.device or "cpu").type != "cpu":
            raise InputError(f'`solver` "compiled" needs tensors on the CPU, got {inputs.device}. Use "exact".')
        maps = saliency_of(inputs).detach()
        cells = usable(grid.pool(maps, sides_of("grid", self.grid, (self.grid, self.grid), inputs)))
        cells = cells.flatten(1).double()
        saliency = cells / cells.sum(1, keepdim=True)
        places = _most_salient(maps, inputs.size)
        by_group = torch.arange(inputs.batch_size, device=maps.device).view(inputs.groups, -1)
        whole = inputs.group_size // self.partition * self.partition
        found = []
        if whole:
            rows = by_group[:, :whole].reshape(-1, self.partition)
            found.append(self._problem(rows, saliency, places, streams.values))
        if inputs.group_size - whole > 1:
            # Those that are left over draw with keys of their own.
            found.append(self._problem(by_group[:, whole:], saliency, places, streams.fold(rng.ROUND).values))
        return found

    def _problem(self, rows: Tensor, saliency: Tensor, places: Tensor, keys: Tensor) -> Partitions:
        """Return the problems of partitions of the rows int64 [P, m], with as many for each key."""
        size, cells = rows.shape[1], saliency.shape[1]
        shape = (rows.shape[0] // keys.shape[0], size)
        prior = dirichlet(keys, rng.PRIOR, shape, self.alpha).view(-1, size, 1)
        instance = Instance(
            costs=-saliency[rows] - self.eta / cells * torch.log(prior + 1e-8),
            compatibility=_compatibility(places[rows], self.omega),
            smoothness=self.beta / cells,
            diversity=self.gamma / cells,
            threshold=self.threshold * cells,
            soft_threshold=self.threshold_rule == "soft",
            soft_labels=self.soft_labels,
            resolve=self.resolve,
            rounds=self.rounds,
        )
        start = rng.integers(keys, rng.LABELS, (*shape, cells), size).view(-1, size, cells)
        return Partitions(rows, instance, start, keys)

    def _visit(self, problem: Partitions) -> Visit:
        """Return what carries out a round."""
        if self.solver == "compiled":
            # Only here, because numba is an extra.
            from rlmix.ops.source_labelling_numba import compiled

            return compiled(self.grid, self.grid)
        partitions, size, cells = problem.start.shape
        if self.solver == "icm" or self.grid not in EXACT_GRIDS:
            shape = (partitions // problem.keys.shape[0], STARTS, cells)
            chances = rng.uniform(problem.keys, rng.ROUND, shape).view(partitions, STARTS, cells)
            return one_by_one(Multistart(self.grid, self.grid, chances))
        return one_by_one(Exact(self.grid, self.grid, size, problem.keys.device))

    def _as_plan(self, sources: Tensor, inputs: MixInputs) -> MixPlan:
        """Return the plan that shows the rows int64 [B, cells, 2] by halves."""
        partners = sources.transpose(1, 2).reshape(-1, 2, self.grid, self.grid)
        first, second = partners.unbind(1)
        own = torch.arange(inputs.batch_size, device=sources.device).view(-1, 1, 1)
        halves = 0.5 * (first != second).float()
        # A cell of the own image is the rest that no partner takes, so that it keeps its bits.
        whole = ((first == second) & (first != own)).float()
        shares = torch.stack([whole + halves, halves], 1)
        return MixPlan(
            size=inputs.size, partners=partners, shares=shares, label_shares=shares * self._areas(inputs, shares.device)
        )

    def _areas(self, inputs: MixInputs, device: torch.device) -> Tensor:
        """Return the cells' shares of the pixels, float32 [h, w], in whole steps of 2**-23 that add up to 1.

        Sums of them and of their halves are exact in float32, so that no label's weight comes out below 0.
        """
        areas = grid.areas(inputs.size, (self.grid, self.grid), device)
        steps = torch.round(areas.double().flatten().cumsum(0) * 2.0**23)
        steps = torch.diff(steps, prepend=torch.zeros_like(steps[:1]))
        return (steps * 2.0**-23).float().view_as(areas)


def _most_salient(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return row and column of each map's most salient place, float64 [B, 2].

    For maps of the images' size that is the window of 8x8 pixels with the largest sum; a coarser map is taken as it is.
    """
    if tuple(maps.shape[1:]) == size:
        windows = maps.unsqueeze(1)
        for kernel in ((min(WINDOW, size[0]), 1), (1, min(WINDOW, size[1]))):
            windows = F.avg_pool2d(windows, kernel, stride=1)
        maps = windows.squeeze(1)
    place = usable(maps).flatten(1).argmax(1)
    return torch.stack([place // maps.shape[2], place % maps.shape[2]], 1).double()


def _compatibility(places: Tensor, omega: float) -> Tensor:
    """Return A [P, m, m] for places [P, m, 2]: (1 - omega) * identity + omega * m * distance / sum of distances.

    Where all places coincide A is the identity.
    """
    count = places.shape[1]
    distance = (places.unsqueeze(2) - places.unsqueeze(1)).abs().sum(3)
    total = distance.sum((1, 2), keepdim=True)
    coincide = (total == 0).double()
    identity = torch.eye(count, dtype=torch.float64, device=places.device)
    return (1.0 - omega * (1.0 - coincide)) * identity + omega * count * distance / (total + coincide)
