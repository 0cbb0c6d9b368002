"""CutMix."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix import apply
from rlmix.errors import MethodError
from rlmix.methods import get
from rlmix.ops import boxes, rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of, sources_seen


def test_boxes_are_those_of_the_paper_drawn_by_a_loop() -> None:
    """Side `int(W * sqrt(1 - lam))` around a uniform pixel, clipped; lam counted from the pixels."""
    size = (9, 14)
    _, _, inputs = batch_of(40, size)
    plan = get("cutmix", alpha=0.8).plan(inputs, Streams([77]))
    seen = sources_seen(plan)
    key = torch.tensor([77])
    lams = rng.beta(key, rng.LAM, (40,), 0.8)[0]
    places = rng.uniform64(key, (rng.CENTRE, (2, 40)))[0][0].T
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        mask = torch.zeros(size)
        cut = math.sqrt(1.0 - float(lams[row]))
        ranges = []
        for axis in (0, 1):
            centre, half = int(float(places[row, axis]) * size[axis]), int(size[axis] * cut) // 2
            ranges.append((max(centre - half, 0), min(centre + half, size[axis])))
        mask[ranges[0][0] : ranges[0][1], ranges[1][0] : ranges[1][1]] = 1.0
        if partner != row:
            assert torch.equal(seen[row, partner], mask)
        assert math.isclose(1.0 - float(mask.mean()), 1.0 - float(plan.label_shares[row, 0]), abs_tol=1e-6)


def test_centres_are_uniform_over_the_image() -> None:
    """An off-by-one at a border would leave the last row or column out. Binomial, six standard errors (2e-9)."""
    count, side = 50_000, 5
    drawn = (rng.uniform(torch.tensor([1]), rng.CENTRE, (count, 2))[0] * side).long()
    for axis in (0, 1):
        counts = torch.bincount(drawn[:, axis], minlength=side)
        assert counts.numel() == side
        assert float((counts - count / side).abs().max()) < 6 * (count * 0.2 * 0.8) ** 0.5


def test_one_box_for_the_batch() -> None:
    """The authors' code cuts the same box in every image."""
    images, _, inputs = batch_of(8, (16, 16))
    plan = get("cutmix", scope="batch").plan(inputs, Streams([4]))
    assert plan.window is not None
    assert torch.equal(plan.window[0], plan.window[0][:1].expand(8, 16))
    mixed = apply(images, plan)
    inside = (plan.window[0][0].unsqueeze(1) * plan.window[1][0]).bool()
    assert torch.equal(mixed[:, :, ~inside], images[:, :, ~inside])
    assert torch.equal(mixed[:, :, inside], images[plan.partners[:, 0]][:, :, inside])


def test_boxes_of_exact_area_are_drawn_by_a_loop() -> None:
    """Each side rounded by a number of its own, and the box somewhere inside."""
    size = (9, 14)
    _, _, inputs = batch_of(40, size)
    plan = get("cutmix", exact_area=True).plan(inputs, Streams([77]))
    seen = sources_seen(plan)
    key = torch.tensor([77])
    lams = rng.beta(key, rng.LAM, (40,), 1.0)[0]
    places, chances = rng.uniform64(key, (rng.CENTRE, (2, 40)))[0][0].T, rng.uniform(key, rng.ROUND, (40, 2))[0]
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        mask, ranges = torch.zeros(size), []
        for axis in (0, 1):
            side = int(size[axis] * math.sqrt(1.0 - float(lams[row])) + float(chances[row, axis]))
            first = int(float(places[row, axis]) * (size[axis] - side + 1))
            ranges.append((first, first + side))
        mask[ranges[0][0] : ranges[0][1], ranges[1][0] : ranges[1][1]] = 1.0
        if partner != row:
            assert torch.equal(seen[row, partner], mask)
        assert math.isclose(float(mask.mean()), float(plan.label_shares[row, 0]), abs_tol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (5, 12)])
def test_the_mean_of_an_exact_area_is_that_of_one_minus_lam(size: tuple[int, int]) -> None:
    """Over 40,000 boxes, six standard errors (a false alarm in 2e-9 of the runs); the published boxes are smaller."""
    count = 40_000
    _, _, inputs = batch_of(count, size, channels=1)
    wanted = 1.0 - rng.beta(torch.tensor([3]), rng.LAM, (count,), 1.0)[0].double()
    exact = get("cutmix", exact_area=True).plan(inputs, Streams([3])).label_shares[:, 0].double()
    error = exact - wanted
    assert abs(float(error.mean())) < 6 * float(error.std()) / count**0.5
    published = get("cutmix").plan(inputs, Streams([3])).label_shares[:, 0].double()
    assert float((published - wanted).mean()) < -0.1


def test_an_exact_area_leaves_every_pixel_the_same_chance_of_a_corner() -> None:
    """Every place of a box is equally likely: binomial over 50,000 boxes, six standard errors (2e-9)."""
    count = 50_000
    key = torch.tensor([1])
    place = rng.uniform(key, rng.CENTRE, (count, 2))[0][:, 0]
    first, last = boxes.inside(place, torch.full((count,), 3), 7)
    counts = torch.bincount(first, minlength=5)
    assert counts.numel() == 5
    assert int(last.max()) == 7
    assert float((counts - count / 5).abs().max()) < 6 * (count * 0.2 * 0.8) ** 0.5
    with pytest.raises(MethodError, match="`exact_area` must be True or False, got 1"):
        get("cutmix", exact_area=1)
