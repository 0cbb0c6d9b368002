"""Co-Mixup's optimisation beside the published graph cuts, one call of gco for each output and round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Candidate, Case, Goal
from rlmix import MixInputs, Streams
from rlmix.methods.comixup import CoMixup
from rlmix.ops.source_labelling import Exact, Inner, Instance, Multistart, inner_energy, one_by_one, solve
from rlmix.ops.source_labelling_numba import best_labels, compiled

BATCH, PIXELS, SIDE, PARTITION = 100, 32, 4, 20
GCO, EXACT, COMPILED, ICM = "gco, a call an output", "rlmix exact", "rlmix compiled", "rlmix icm"
DRAWN, DRAWN_COMPILED = "rlmix whole draw, exact", "rlmix whole draw, compiled"
ROUNDS = 20


def blobs(count: int, seed: int = 3) -> Tensor:
    """Return synthetic saliency maps [count, PIXELS, PIXELS]: one blob each, on noise."""
    generator = torch.Generator().manual_seed(seed)
    row, column = PIXELS * torch.rand(2, count, 1, 1, generator=generator)
    width = 3 + 5 * torch.rand(count, 1, 1, generator=generator)
    place = torch.arange(PIXELS) + 0.5
    far = (place.view(1, -1, 1) - row) ** 2 + (place.view(1, 1, -1) - column) ** 2
    return torch.exp(-far / (2 * width**2)) + 0.1 * torch.rand(count, PIXELS, PIXELS, generator=generator)


def by_graph_cuts(side: int) -> Inner:
    """Return what solves inner problems by gco's alpha-beta swap, one after the other, as the authors' code does."""
    from gco import pygco

    ones = np.ones((side - 1, side)), np.ones((side, side - 1))

    def solve_inner(unary: Tensor, smooth: Tensor) -> Tensor:
        found = []
        for costs, edges in zip(unary, smooth, strict=True):
            # The released code has no label for halves that are not to be had.
            there = torch.isfinite(costs[0])
            known = torch.arange(len(there))[there]
            edge = float(edges.max())
            labels = pygco.cut_grid_graph(
                costs[:, there].view(side, side, -1).numpy(),
                (edges[there][:, there] / edge).numpy(),
                *(edge * ones[0], edge * ones[1]),
                algorithm="swap",
            )
            found.append(known[torch.from_numpy(labels).long()])
        return torch.stack(found)

    return solve_inner


def by_full_search(side: int) -> Inner:
    """Return what solves inner problems exactly, one after the other."""

    def solve_inner(unary: Tensor, smooth: Tensor) -> Tensor:
        found = torch.empty(unary.shape[:2], dtype=torch.int64)
        for costs, edges, labels in zip(unary, smooth, found, strict=True):
            best_labels(costs.contiguous().numpy(), edges.contiguous().numpy(), side, side, labels.numpy())
        return found

    return solve_inner


def recorded(instance: Instance, start: Tensor, inner: Inner) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Return what the outputs show, and the inner problems on the way with their solutions."""
    met: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(unary: Tensor, smooth: Tensor) -> Tensor:
        labels = inner(unary, smooth)
        met.append((unary, smooth, labels))
        return labels

    return solve(instance, start, one_by_one(record)), met


def gaps(met: list[tuple[Tensor, Tensor, Tensor]], side: int) -> Tensor:
    """Return how far each solution's energy lies above the least one."""
    best = by_full_search(side)
    return torch.cat([
        inner_energy(unary, smooth, labels, side, side) - inner_energy(unary, smooth, best(unary, smooth), side, side)
        for unary, smooth, labels in met
    ])  # fmt: skip


def apart(instance: Instance) -> list[Instance]:
    """Return the partitions, each as an instance of its own."""
    return [
        replace(instance, costs=instance.costs[part : part + 1], compatibility=instance.compatibility[part : part + 1])
        for part in range(instance.costs.shape[0])
    ]


def cases() -> list[Callable[[], Case]]:
    """Return what builds the case."""
    return [_case]


def _case() -> Case:
    inputs = MixInputs(BATCH, PIXELS, PIXELS, saliency=blobs(BATCH))
    method = CoMixup(grid=SIDE, partition=PARTITION)
    by_machine = CoMixup(grid=SIDE, partition=PARTITION, solver="compiled")
    streams = Streams([7])
    ((_, instance, start, _),) = method.problems(inputs, streams)
    exact = one_by_one(Exact(SIDE, SIDE, PARTITION, start.device))
    many = one_by_one(Multistart(SIDE, SIDE, torch.rand(BATCH // PARTITION, 8, SIDE * SIDE)))
    machine, graph_cuts = compiled(SIDE, SIDE), one_by_one(by_graph_cuts(SIDE))
    each = list(zip(apart(instance), start.split(1), strict=True))

    def check() -> None:
        _, met = recorded(instance, start, Exact(SIDE, SIDE, PARTITION, start.device))
        gap = gaps(met, SIDE)
        assert float(gap.min()) > -1e-9
        assert float((gap < 1e-9).double().mean()) >= 0.99

    def goal(candidate: str, factor: int) -> Goal:
        text = f"{candidate}: at least {factor} times as fast as gco"
        return Goal(candidate=candidate, baseline=GCO, limit=1 / factor, text=text)

    return Case(
        group="comixup",
        name=f"Co-Mixup, B = {BATCH}, partitions of {PARTITION}, a {SIDE} x {SIDE} grid",
        candidates=(
            Candidate(name=GCO, run=lambda _: [solve(one, begin, graph_cuts) for one, begin in each]),
            Candidate(name=EXACT, run=lambda _: solve(instance, start, exact)),
            Candidate(name=COMPILED, run=lambda _: solve(instance, start, machine)),
            Candidate(name=ICM, run=lambda _: solve(instance, start, many)),
            Candidate(name=DRAWN, run=lambda _: method.plan(inputs, streams)),
            Candidate(name=DRAWN_COMPILED, run=lambda _: by_machine.plan(inputs, streams)),
        ),
        rounds=ROUNDS,
        goals=(goal(EXACT, 3), goal(COMPILED, 10)),
        check=check,
        notes=(
            f"From costs to labels; the last two go from saliency maps to a plan. `{GCO}` solves each partition by "
            "itself and each output in turn by an alpha-beta swap over all labels, with gco-wrapper 3.0.9, as the "
            "authors' code does; what stands around the calls is rlmix's own. The others keep the order of the outputs "
            "and solve all partitions side by side. Before the timing, `exact` is shown to find the optimum of at "
            "least 99 of 100 inner problems."
        ),
    )
