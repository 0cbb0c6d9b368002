"""Attentive CutMix, against a loop over cells."""

from __future__ import annotations

import pytest
import torch

from rlmix import MixInputs, apply
from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import grid, rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def highest(cells: list[float], count: int) -> list[float]:
    """Return 1.0 at the `count` highest of `cells`, the first of equal ones."""
    order = sorted(range(len(cells)), key=lambda cell: (-cells[cell], cell))
    return [1.0 if cell in order[:count] else 0.0 for cell in range(len(cells))]


@pytest.mark.parametrize("size", [(28, 28), (15, 9)])
def test_the_partners_highest_cells_are_pasted(size: tuple[int, int]) -> None:
    """6 of 7x7 by default; each pixel is one image's or the other's, and the label counts them."""
    images, _, inputs = batch_of(10, size)
    assert inputs.saliency is not None
    plan = get("attentivemix").plan(inputs, Streams([4]))
    cells = grid.pool(inputs.saliency, (7, 7)).flatten(1)
    mixed = apply(images, plan)
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        pasted = highest(cells[partner].tolist(), 6)
        count = 0
        for y in range(size[0]):
            for x in range(size[1]):
                theirs = bool(pasted[(y * 7) // size[0] * 7 + (x * 7) // size[1]])
                assert torch.equal(mixed[row, :, y, x], images[partner if theirs else row, :, y, x])
                count += theirs
        assert float(plan.label_shares[row, 0]) == pytest.approx(count / (size[0] * size[1]), abs=1e-6)
    if size == (28, 28):
        assert torch.allclose(plan.label_shares, torch.full((10, 1), 6 / 49))


def test_the_number_of_cells_may_follow_lam_or_be_given_for_each_image() -> None:
    """`k=None` keeps at least one cell and at most all; a tensor counts row by row."""
    _, _, inputs = batch_of(300, (14, 14), channels=1)
    plan = get("attentivemix", k=None, alpha=0.2).plan(inputs, Streams([6]))
    lams = rng.beta(torch.tensor([6]), rng.LAM, (300,), 0.2)[0]
    counts = [min(max(int(49 * (1.0 - lam)), 1), 49) for lam in lams]
    assert plan.shares.sum((1, 2, 3)).tolist() == counts
    assert {1, 49} <= set(counts)
    given = torch.arange(1, 301)
    pasted = get("attentivemix", k=given).plan(inputs, Streams([6])).shares.sum((1, 2, 3))
    assert torch.equal(pasted, given.clamp_max(49))


def test_equal_cells_are_taken_in_reading_order() -> None:
    """A uniform map still gives exactly k cells."""
    inputs = MixInputs(3, 8, 8, saliency=torch.ones(3, 4, 4))
    plan = get("attentivemix", grid=4, k=5).plan(inputs, Streams([0]))
    assert plan.shares.flatten(1).float().tolist() == [[1.0] * 5 + [0.0] * 11] * 3


def test_bad_parameters_and_small_images_are_refused() -> None:
    """A grid that was given is not changed in silence; the default one follows the image."""
    for bad in (0, 2.5, torch.tensor([1, 0]), torch.tensor([2.0])):
        with pytest.raises(MethodError, match="`k` must be"):
            get("attentivemix", k=bad)
    with pytest.raises(MethodError, match="`grid` must be a whole number of at least 1 or None, got 0"):
        get("attentivemix", grid=0)
    small = batch_of(2, (3, 8))[2]
    with pytest.raises(InputError, match="the grid of 7x7 cells is finer than the image of 3x8"):
        get("attentivemix", grid=7).plan(small, Streams([0]))
    assert get("attentivemix").plan(small, Streams([0])).shares.shape == (2, 1, 3, 7)
