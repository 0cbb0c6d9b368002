"""GridMix, against loops over holes and cells."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import grid, rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


@pytest.mark.parametrize(
    ("size", "count"), [((32, 32), None), ((9, 14), 3), ((21, 5), None), ((16, 48), 20), ((3, 1), 4)]
)
def test_the_holes_are_those_that_a_loop_digs(size: tuple[int, int], count: int | None) -> None:
    """A hole at each point of the lattice, clipped at the borders; the share is the number of their pixels."""
    height, width = size
    _, _, inputs = batch_of(12, size)
    plan = get("gridmix", count=count).plan(inputs, Streams([5]))
    lams = rng.beta(torch.tensor([5]), rng.LAM, (12,), 1.0)[0].tolist()
    across = max(min(count or 20, width // 2), 1)
    period = math.ceil(width / across)
    for row, lam in enumerate(lams):
        side = min(max(int(period * math.sqrt(1.0 - lam)), 1), period - 1)
        mask = torch.zeros(size)
        for top in range(0, height, period):
            for left in range(0, width, period):
                for y in range(top, min(top + side, height)):
                    for x in range(left, min(left + side, width)):
                        mask[y, x] = 1.0
        assert torch.equal(plan.weights[row, 1], mask)
        assert float(plan.label_shares[row, 0]) == pytest.approx(float(mask.sum()) / (height * width), abs=1e-7)


def test_the_share_of_whole_periods_has_its_closed_form() -> None:
    """8 holes across 64 pixels: periods of 8, so lam = 1 - (side / 8)^2."""
    _, _, inputs = batch_of(64, (64, 64))
    plan = get("gridmix", count=8).plan(inputs, Streams([1]))
    sides = (8 * torch.sqrt(plan.label_shares[:, 0])).round()
    assert torch.allclose(plan.label_shares[:, 0], (sides / 8).square())
    assert set(sides.tolist()) == set(range(1, 8))


def test_holes_never_vanish_and_never_meet() -> None:
    """The extremes of lam leave a hole of one pixel, or a frame of one."""
    _, _, inputs = batch_of(40, (24, 24))
    shares = get("gridmix", count=4, alpha=1e-3).plan(inputs, Streams([2])).label_shares[:, 0]
    assert float(shares.min()) == pytest.approx(1 / 36)
    assert float(shares.max()) == pytest.approx(25 / 36)


def test_the_cells_are_those_that_a_loop_draws() -> None:
    """Each cell shows the partner where its number is not below lam."""
    size = (10, 21)
    _, _, inputs = batch_of(12, size)
    plan = get("gridmix", variant="cells", count=4).plan(inputs, Streams([5]))
    lams = rng.beta(torch.tensor([5]), rng.LAM, (12,), 1.0)[0]
    chances = rng.uniform(torch.tensor([5]), rng.CELLS, (12, 4, 4))[0]
    for row in range(12):
        mask = torch.zeros(size)
        for y in range(size[0]):
            for x in range(size[1]):
                mask[y, x] = float(chances[row, (y * 4) // size[0], (x * 4) // size[1]] >= lams[row])
        assert torch.equal(grid.expand(plan.weights[row, 1], size), mask)
        assert float(plan.label_shares[row, 0]) == pytest.approx(float(mask.mean()), abs=1e-6)


def test_the_mean_share_of_cells_is_that_of_one_minus_lam() -> None:
    """Over 2,000 images of 64 cells each, given their lams; six standard errors: a false alarm in 2e-9 of the runs."""
    _, _, inputs = batch_of(2000, (8, 8), channels=1)
    plan = get("gridmix", variant="cells").plan(inputs, Streams([8]))
    lams = rng.beta(torch.tensor([8]), rng.LAM, (2000,), 1.0)[0].double()
    error = (plan.label_shares[:, 0].double() - (1.0 - lams)).sum()
    assert abs(float(error)) < 6 * float((lams * (1.0 - lams) / 64).sum().sqrt())


def test_one_lattice_or_one_set_of_cells_for_the_batch() -> None:
    """With scope "batch" every image has the same mask."""
    _, _, inputs = batch_of(6, (16, 16))
    for variant in ("holes", "cells"):
        weights = get("gridmix", variant=variant, scope="batch").plan(inputs, Streams([3])).weights
        assert torch.equal(weights, weights[:1].expand_as(weights))


def test_bad_parameters_and_small_images_are_refused() -> None:
    """A grid that was given is not changed in silence; the default one follows the image."""
    with pytest.raises(MethodError, match="`variant` must be one of 'holes', 'cells', got 'lines'"):
        get("gridmix", variant="lines")
    with pytest.raises(MethodError, match="`count` must be a whole number of at least 1 or None, got 0"):
        get("gridmix", count=0)
    small = batch_of(2, (3, 8))[2]
    with pytest.raises(InputError, match="the grid of 4x4 cells is finer than the image of 3x8"):
        get("gridmix", variant="cells", count=4).plan(small, Streams([0]))
    assert get("gridmix", variant="cells").plan(small, Streams([0])).shares.shape == (2, 1, 3, 8)
