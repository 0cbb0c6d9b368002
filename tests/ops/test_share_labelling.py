"""Labelling cells with shares: exact against every labelling, chains against exact."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlmix.errors import InputError
from rlmix.ops.share_labelling import chains, energy, exact, solve
from rlmix.testing.methods import OperationCounter

Problem = tuple[Tensor, Tensor, Tensor]


def random_problem(batch: int, height: int, width: int, levels: int, *, seed: int = 0, low: float = 0.0) -> Problem:
    """Return costs in [0, 1) and weights in [low, 1), as strong as the costs."""
    generator = torch.Generator().manual_seed(seed)
    unary = torch.rand(batch, height, width, levels, generator=generator)
    right = torch.rand(batch, height, width - 1, generator=generator) * (1 - low) + low
    return unary, right, torch.rand(batch, height - 1, width, generator=generator) * (1 - low) + low


def slow_energy(problem: Problem, image: int, labels: Tensor) -> float:
    """Add up one image's energy cell by cell."""
    unary, right, down = (part[image].double() for part in problem)
    height, width, levels = unary.shape
    total = 0.0
    for row, column in itertools.product(range(height), range(width)):
        label = int(labels[row, column])
        total += float(unary[row, column, label])
        if column + 1 < width:
            total += float(right[row, column]) * ((label - int(labels[row, column + 1])) / (levels - 1)) ** 2
        if row + 1 < height:
            total += float(down[row, column]) * ((label - int(labels[row + 1, column])) / (levels - 1)) ** 2
    return total


def lowest(problem: Problem) -> Tensor:
    """Return the lowest energy of each image over all labellings."""
    batch, height, width, levels = problem[0].shape
    labellings = torch.tensor(list(itertools.product(range(levels), repeat=height * width)))
    return torch.stack(
        [energy(*problem, cells.view(1, height, width).expand(batch, -1, -1)) for cells in labellings]
    ).amin(0)


def test_the_energy_is_that_of_a_slow_sum() -> None:
    """All other tests compare energies."""
    problem = random_problem(4, 3, 5, 4, low=-0.5)
    labels = torch.randint(4, (4, 3, 5), generator=torch.Generator().manual_seed(1))
    slow = torch.tensor([slow_energy(problem, image, labels[image]) for image in range(4)])
    assert torch.allclose(energy(*problem, labels), slow, atol=1e-5)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize(
    ("height", "width", "levels"), [(2, 2, 3), (2, 3, 3), (3, 2, 3), (3, 3, 2), (2, 2, 5), (1, 4, 3)]
)
def test_exact_finds_the_lowest_of_all_labellings(height: int, width: int, levels: int, low: float) -> None:
    """Weights below 0, which graph cuts cannot take, are allowed."""
    problem = random_problem(20, height, width, levels, low=low)
    for solver in (exact, solve):
        labels = solver(*problem)
        assert labels.shape == (20, height, width)
        assert labels.dtype == torch.int64
        assert torch.allclose(energy(*problem, labels), lowest(problem), atol=1e-6)


def test_exact_finds_the_lowest_energy_of_three_levels_on_three_by_three_cells() -> None:
    """All 19683 labellings, as images of one batch."""
    problem = random_problem(1, 3, 3, 3, low=-0.5)
    labellings = torch.tensor(list(itertools.product(range(3), repeat=9))).view(-1, 3, 3)
    unary, right, down = (part.expand(len(labellings), -1, -1, *[-1] * (part.dim() - 3)) for part in problem)
    every = energy(unary, right, down, labellings)
    assert torch.allclose(energy(*problem, exact(*problem)), every.amin(), atol=1e-6)


@pytest.mark.parametrize(("strength", "share", "gap"), [(0.1, 0.98, 1e-5), (0.5, 0.9, 1e-3), (1.0, 0.8, 5e-3)])
def test_chains_are_hardly_ever_above_the_lowest_energy(strength: float, share: float, gap: float) -> None:
    """Exact dynamic programming is the oracle, on 300 grids of 4x4 cells; costs are nearly linear in the share."""
    unary, right, down = random_problem(300, 4, 4, 3, seed=2)
    unary[..., 1] = unary[..., ::2].mean(3) + 0.1 * (unary[..., 1] - 0.5)
    problem = unary, right * strength, down * strength
    best, found = energy(*problem, exact(*problem)), energy(*problem, chains(*problem))
    assert bool((found >= best - 1e-5).all())
    assert float((found < best + 1e-5).float().mean()) > share
    assert float(((found - best) / best).mean()) < gap


def test_chains_solve_grids_without_ties_in_one_direction_exactly() -> None:
    """Rows alone, or columns alone, are chains."""
    unary, right, down = random_problem(10, 4, 4, 3, low=-1.0)
    for problem in ((unary, right, torch.zeros_like(down)), (unary, torch.zeros_like(right), down)):
        assert torch.allclose(energy(*problem, chains(*problem)), energy(*problem, exact(*problem)), atol=1e-5)


def test_sweeps_and_more_rounds_lower_the_energy() -> None:
    """Each chain is solved with the others held, so that no sweep can make it worse."""
    problem = random_problem(50, 16, 16, 3)
    by_sweeps = torch.stack([energy(*problem, chains(*problem, rounds=1, sweeps=sweeps)) for sweeps in range(4)])
    assert bool((by_sweeps.diff(dim=0) <= 1e-4).all())
    by_rounds = [float(energy(*problem, chains(*problem, rounds=rounds)).mean()) for rounds in (1, 3, 9)]
    assert by_rounds == sorted(by_rounds, reverse=True)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (7, 6), (5, 9), (1, 7), (7, 1)])
def test_grids_of_any_shape_are_labelled(height: int, width: int) -> None:
    """Turning the grid on its side gives labels of (nearly) the same energy, never below the exact one."""
    problem = random_problem(8, height, width, 3)
    unary, right, down = problem
    turned = unary.transpose(1, 2), down.transpose(1, 2), right.transpose(1, 2)
    one, other = energy(*problem, chains(*problem)), energy(*turned, chains(*turned))
    best = energy(*problem, exact(*problem))
    for found in (one, other):
        assert torch.allclose(found, best, rtol=0.1)
        assert bool((found >= best - 1e-4).all())


@pytest.mark.parametrize("solver", [exact, chains])
def test_images_do_not_see_each_other_and_cost_no_operations(solver) -> None:  # type: ignore[no-untyped-def]
    """What an image gets depends neither on the batch nor on its place; nothing is read back."""
    problem = random_problem(5, 4, 4, 3)
    together = solver(*problem)
    for image in range(5):
        alone = solver(*(part[image : image + 1] for part in problem))
        assert torch.equal(alone[0], together[image])
    counts = []
    for batch in (2, 7):
        given = random_problem(batch, 4, 4, 3)
        with OperationCounter() as counter:
            solver(*given)
        assert counter.read_backs == []
        counts.append(counter.counts)
    assert counts[0] == counts[1]


def test_a_grid_too_wide_for_tables_is_refused() -> None:
    """The table would have 3**9 entries for each image and cell."""
    with pytest.raises(InputError, match=r"exact solution of 9x9 cells with 3 levels needs 19683 states"):
        exact(*random_problem(1, 9, 9, 3))
