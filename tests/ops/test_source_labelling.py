"""Co-Mixup's optimisation, against brute force and slow literal loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from rlmix.ops.source_labelling import (
    HALVES_BONUS,
    Exact,
    Instance,
    Multistart,
    Visit,
    energy_parts,
    inner_energy,
    one_by_one,
    solve,
)

CPU = torch.device("cpu")


@lru_cache
def labellings(cells: int, labels: int) -> Tensor:
    """Return all labellings, int64 [labels ** cells, cells]."""
    return torch.cartesian_prod(*[torch.arange(labels)] * cells)


def brute_force(height: int, width: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what solves inner problems by trying everything."""

    def solve_inner(unary: Tensor, smooth: Tensor) -> Tensor:
        every = labellings(height * width, unary.shape[2])
        best = []
        for part in range(unary.shape[0]):
            costs = unary[part].gather(1, every.T).sum(0)
            grid = every.view(-1, height, width)
            costs = costs + smooth[part][grid[:, 1:], grid[:, :-1]].sum((1, 2))
            costs = costs + smooth[part][grid[:, :, 1:], grid[:, :, :-1]].sum((1, 2))
            best.append(every[costs.argmin()])
        return torch.stack(best)

    return solve_inner


def inner_problems(count: int, cells: int, labels: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return random costs, some infinite, and the published smoothness, the last label half of the first two."""
    generator = torch.Generator().manual_seed(seed)
    unary = scale * torch.rand(count, cells, labels, generator=generator, dtype=torch.float64)
    unary[::3, :, labels - 1] = torch.inf
    smooth = 1.0 - torch.eye(labels, dtype=torch.float64)
    smooth[-1, :2] = smooth[:2, -1] = 0.25
    return unary, 0.3 * smooth.expand(count, -1, -1)


def instance_of(
    partitions: int,
    count: int,
    side: int,
    seed: int,
    *,
    omega: float = 0.001,
    threshold: float = 0.83,
    **changes: bool,
) -> Instance:
    """Return an instance as the method makes it, from blobs of saliency."""
    generator = torch.Generator().manual_seed(seed)
    centre = side * torch.rand(partitions, count, 2, 1, 1, generator=generator, dtype=torch.float64)
    place = torch.arange(side) + 0.5
    far = (place.view(-1, 1) - centre[:, :, 0]) ** 2 + (place - centre[:, :, 1]) ** 2
    saliency = torch.exp(-far / (0.1 * side**2)).flatten(2) + 0.1 * torch.rand(
        partitions, count, side * side, generator=generator
    )
    prior = torch.rand(partitions, count, 1, generator=generator, dtype=torch.float64)
    apart = (centre.unsqueeze(1) - centre.unsqueeze(2)).abs().sum((3, 4, 5))
    share = apart * count / apart.sum((1, 2), keepdim=True)
    flags = {"soft_threshold": False, "soft_labels": True, "resolve": True, **changes}
    return Instance(
        costs=-saliency / saliency.sum(2, keepdim=True)
        - 0.05 / side**2 * torch.log(prior / prior.sum(1, keepdim=True)),
        compatibility=(1.0 - omega) * torch.eye(count, dtype=torch.float64) + omega * share,
        smoothness=0.32 / side**2,
        diversity=1.0 / side**2,
        threshold=threshold * side**2,
        rounds=4,
        **flags,
    )


def start_of(instance: Instance, seed: int) -> Tensor:
    """Return a random start, int64 [P, m, cells]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(instance.costs.shape[1], tuple(instance.costs.shape), generator=generator)


def recorded(instance: Instance, start: Tensor, inner: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[Tensor, ...]]:
    """Return the inner problems that arise, each with its solution."""
    problems = []

    def record(unary: Tensor, smooth: Tensor) -> Tensor:
        labels = inner(unary, smooth)
        problems.append((unary, smooth, labels))
        return labels

    solve(instance, start, one_by_one(record))
    return problems


def compiled_best(unary: Tensor, smooth: Tensor, side: int) -> Tensor:
    """Return what the compiled solver finds, problem by problem."""
    best_labels = pytest.importorskip("rlmix.ops.source_labelling_numba", exc_type=ImportError).best_labels
    found = np.empty(unary.shape[:2], np.int64)
    for part in range(unary.shape[0]):
        best_labels(unary[part].contiguous().numpy(), smooth[part].contiguous().numpy(), side, side, found[part])
    return torch.from_numpy(found)


@pytest.mark.parametrize(("side", "labels"), [(2, 2), (2, 3), (2, 7), (3, 4)])
def test_every_solver_finds_what_brute_force_finds(side: int, labels: int) -> None:
    """With as many candidates as labels the dynamic programme is exact; many starts find the optimum of small grids."""
    unary, smooth = inner_problems(24, side * side, labels, seed=labels, scale=0.6)
    best = brute_force(side, side)(unary, smooth)
    exact = Exact(side, side, labels, CPU, candidates=labels)(unary, smooth)
    assert torch.equal(exact, best)
    assert torch.equal(compiled_best(unary, smooth, side), best)
    starts = torch.rand(24, 8, side * side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Multistart(side, side, starts)(unary, smooth), best)


def test_hardly_an_inner_problem_is_not_solved_exactly() -> None:
    """Both solvers must find the optimum in at least 99 of 100 inner problems of the published size."""
    instance = instance_of(8, 20, 4, seed=5)
    starts = torch.rand(8, 8, 16, generator=torch.Generator().manual_seed(0))
    for inner in (Exact(4, 4, 20, CPU), Multistart(4, 4, starts)):
        gaps = []
        for unary, smooth, labels in recorded(instance, start_of(instance, 5), inner):
            best = compiled_best(unary, smooth, 4)
            gaps.append(inner_energy(unary, smooth, labels, 4, 4) - inner_energy(unary, smooth, best, 4, 4))
        gap = torch.cat(gaps)
        assert gap.shape == (640,)
        assert float(gap.min()) > -1e-12
        assert float((gap < 1e-12).double().mean()) >= 0.99


def literal_output(instance: Instance, unary: np.ndarray, used: np.ndarray, side: int, *, halves: bool) -> np.ndarray:
    """Return the best shares [cells, m] of an output that uses its inputs so far as `used` says."""
    count = len(used)
    options, price = list(np.eye(count)), list(unary)
    if halves and (used > 0).sum() >= 2:
        most = sorted(range(count), key=lambda one: -used[one])[: min(3, int((used > 0).sum()))]
        for one, two in itertools.combinations(most, 2):
            options.append((np.eye(count)[one] + np.eye(count)[two]) / 2)
            price.append((unary[one] + unary[two]) / 2 - HALVES_BONUS)
    smooth = torch.zeros(1, len(options), len(options), dtype=torch.float64)
    for one, two in itertools.product(range(len(options)), repeat=2):
        member = options[one].max() != options[two].max() and options[one] @ options[two] > 0
        smooth[0, one, two] = instance.smoothness * (0.0 if one == two else 0.25 if member else 1.0)
    found = brute_force(side, side)(torch.tensor(np.array(price).T).unsqueeze(0), smooth)[0]
    return np.array([options[label] for label in found.tolist()])


def literal(instance: Instance, start: Tensor, side: int, part: int) -> tuple[Tensor, int]:
    """Follow the algorithm for one partition in plain loops; return shares [m, cells, m] and how many were pushed."""
    costs, weights = instance.costs[part].numpy(), instance.compatibility[part].numpy()
    count, cells = costs.shape
    shares = np.zeros((count, cells, count))
    for output, cell in itertools.product(range(count), range(cells)):
        shares[output, cell, int(start[part, output, cell])] = 1.0
    pushed = np.zeros((count, count))
    for turn in range(instance.rounds):
        for output in range(count):
            others = sum(shares[other].sum(0) for other in range(count) if other != output)
            over = (weights @ others > instance.threshold).astype(float)
            if instance.soft_threshold:
                added = 2 * instance.diversity * over * (weights @ others - instance.threshold)
            else:
                added = 2 * instance.diversity * (over * weights) @ others
            unary = costs + (added + instance.diversity * pushed[output])[:, None]
            halves = turn > 0 and instance.soft_labels
            shares[output] = literal_output(instance, unary, shares[output].sum(0), side, halves=halves)
        if instance.resolve and turn == instance.rounds - 2:
            used_by = [tuple(np.flatnonzero(shares[output].sum(0))) for output in range(count)]
            for one, two in itertools.combinations(range(count), 2):
                if used_by[one] == used_by[two] and len(used_by[one]) > 1:
                    pushed[one, used_by[one][0]] = pushed[two, used_by[two][1]] = 1.0
    return torch.from_numpy(shares), int(pushed.sum())


def as_shares(shown: Tensor, count: int) -> Tensor:
    """Return the inputs that are shown [.., 2] as shares of each input [.., m]."""
    return torch.nn.functional.one_hot(shown, count).double().mean(-2)


VISITS = {
    "tensors": lambda side: one_by_one(brute_force(side, side)),
    "compiled": lambda side: pytest.importorskip("rlmix.ops.source_labelling_numba", exc_type=ImportError).compiled(
        side, side
    ),
}


@pytest.mark.parametrize("visit", VISITS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"soft_threshold": True}, {"soft_labels": False}, {"resolve": False}],
    ids=["published", "soft threshold", "whole labels", "not resolved"],
)
def test_the_rounds_are_the_literal_algorithm(visit: str, changes: dict[str, bool]) -> None:
    """Partitions side by side give, to the label, what loops over one partition give."""
    carried_out: Visit = VISITS[visit](2)
    pushed = halves = 0
    for count, seed in ((2, 0), (4, 1), (4, 2), (5, 3)):
        instance = instance_of(4, count, 2, seed, omega=0.2, threshold=0.8, **changes)
        start = start_of(instance, seed)
        shown = as_shares(solve(instance, start, carried_out), count)
        for part in range(4):
            expected, moved = literal(instance, start, 2, part)
            assert torch.equal(shown[part], expected)
            pushed += moved
            halves += int((expected == 0.5).any(-1).sum())
    assert (pushed > 0) == instance.resolve
    assert (halves > 0) == instance.soft_labels


def test_energies_are_those_of_literal_loops() -> None:
    """What the benchmarks report must be what the paper minimises."""
    instance = instance_of(2, 5, 3, seed=4, omega=0.3, threshold=0.5)
    generator = torch.Generator().manual_seed(1)
    shown = torch.randint(5, (2, 5, 9, 2), generator=generator)
    shares = as_shares(shown, 5)
    for part, values in enumerate(zip(*energy_parts(instance, shown, 3, 3), strict=True)):
        z, uses = shares[part], shares[part].sum(1)
        cost = smooth = shared = above = 0.0
        for output in range(5):
            for cell in range(9):
                cost += float(z[output, cell] @ instance.costs[part, :, cell])
                for near in (cell + 1 if cell % 3 < 2 else -1, cell + 3):
                    if 0 <= near < 9:
                        smooth += float(((z[output, cell] - z[output, near]) ** 2).sum()) * instance.smoothness / 2
            others = uses.sum(0) - uses[output]
            shared += instance.diversity * float(uses[output] @ others)
            for one in range(5):
                met = float(instance.compatibility[part, one] @ others)
                above += instance.diversity * met * float(uses[output, one]) * (met > instance.threshold)
        assert [float(value) for value in values] == pytest.approx([cost, smooth, shared, above])


def test_without_a_threshold_no_visit_raises_the_energy() -> None:
    """With the identity for compatibility every step is exact descent on one coordinate of E_0."""
    given = instance_of(2, 6, 3, seed=7, omega=0.0, threshold=-1.0, soft_labels=False, resolve=False)
    start = start_of(given, 7)
    uses = torch.nn.functional.one_hot(start, 6).double().sum(2)
    problems = recorded(given, start, Exact(3, 3, 6, CPU, candidates=6))
    shown = start.clone()

    def energy() -> Tensor:
        return sum(energy_parts(given, shown.unsqueeze(-1).expand(-1, -1, -1, 2), 3, 3)[:3], torch.zeros(2))

    before = energy()
    assert uses.sum() == 2 * 6 * 9
    for number, (unary, smooth, labels) in enumerate(problems):
        output = number % 6
        change = inner_energy(unary, smooth, labels, 3, 3) - inner_energy(unary, smooth, shown[:, output], 3, 3)
        shown[:, output] = labels
        after = energy()
        assert torch.allclose(after - before, change, atol=1e-12)
        assert bool((after <= before + 1e-12).all())
        before = after


def test_a_partition_gets_the_same_whatever_stands_beside_it() -> None:
    """Partitions share tensor operations and nothing else."""
    whole, start = instance_of(3, 6, 4, seed=9), start_of(instance_of(3, 6, 4, seed=9), 9)
    shown = solve(whole, start, one_by_one(Exact(4, 4, 6, CPU)))
    alone = Instance(
        costs=whole.costs[1:2], compatibility=whole.compatibility[1:2], smoothness=whole.smoothness,
        diversity=whole.diversity, threshold=whole.threshold, soft_threshold=False, soft_labels=True, resolve=True,
        rounds=4,
    )  # fmt: skip
    assert torch.equal(solve(alone, start[1:2], one_by_one(Exact(4, 4, 6, CPU)))[0], shown[1])
