"""ResizeMix, against a loop over pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlmix import apply
from rlmix.errors import MethodError
from rlmix.methods import get
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def pasted_by_a_loop(images: Tensor, partners: list[int], taus: Tensor, centres: Tensor) -> tuple[Tensor, list[float]]:
    """Paste each partner pixel by pixel; return the images and the boxes' shares of the pixels."""
    height, width = images.shape[2:]
    mixed, shares = images.clone(), []
    for row, partner in enumerate(partners):
        bounds = []
        for axis, length in enumerate((height, width)):
            side = int(float(taus[row]) * length)
            centre = int(float(centres[row, axis]) * length)
            bounds.append((max(centre - side // 2, 0), min(centre + side // 2, length)))
        (top, bottom), (left, right) = bounds
        shares.append(0.0 if partner == row else (bottom - top) * (right - left) / (height * width))
        if partner == row:
            continue
        for y in range(top, bottom):
            for x in range(left, right):
                source_y, source_x = ((y - top) * height) // (bottom - top), ((x - left) * width) // (right - left)
                mixed[row, :, y, x] = images[partner, :, source_y, source_x]
    return mixed, shares


@pytest.mark.parametrize("size", [(32, 32), (9, 14), (21, 5), (1, 7)])
def test_the_whole_partner_is_shown_in_the_clipped_box(size: tuple[int, int]) -> None:
    """Pixels are copied with their bits; the label is the share of the box's pixels."""
    images, _, inputs = batch_of(24, size)
    plan = get("resizemix").plan(inputs, Streams([77]))
    key = torch.tensor([77])
    taus = 0.1 + (0.8 - 0.1) * rng.uniform(key, rng.SCALE, (24,))[0]
    centres = rng.uniform(key, rng.CENTRE, (24, 2))[0]
    mixed, shares = pasted_by_a_loop(images, plan.partners[:, 0].tolist(), taus, centres)
    assert torch.equal(apply(images, plan), mixed)
    assert torch.equal(plan.label_shares[:, 0], torch.tensor(shares))
    assert torch.allclose(plan.lam, 1.0 - torch.tensor(shares))


def test_the_largest_box_in_the_middle_replaces_the_image() -> None:
    """With tau = 1 a box that is not clipped is the whole image, and the partner is shown pixel by pixel."""
    images, _, inputs = batch_of(400, (4, 4))
    plan = get("resizemix", low=1.0, high=1.0).plan(inputs, Streams([3]))
    whole = plan.label_shares[:, 0] == 1.0
    # A centre in row 2 and column 2 of 4 has room for 4 pixels: one in 16.
    assert 8 < int(whole.sum()) < 60
    assert torch.equal(apply(images, plan)[whole], images[plan.partners[:, 0]][whole])
    assert bool((plan.lam[whole] == 0).all())


def test_a_small_box_leaves_an_image_alone() -> None:
    """A box without a pixel mixes nothing, in pixels as in the label."""
    images, labels, inputs = batch_of(9, (8, 8))
    plan = get("resizemix", low=0.0, high=0.2).plan(inputs, Streams([3]))
    assert torch.equal(apply(images, plan), images)
    assert torch.equal(plan.soft_targets(labels, 9), torch.eye(9))


def test_an_image_that_meets_itself_stays_as_it_is() -> None:
    """Its own small picture in it would be a change that lam = 1 denies."""
    images, _, inputs = batch_of(6, (16, 16))
    given = type(inputs)(6, 16, 16, partners=torch.arange(6))
    plan = get("resizemix", low=0.8).plan(given, Streams([1]))
    assert torch.equal(apply(images, plan), images)
    assert torch.equal(plan.lam, torch.ones(6))


def test_bounds_may_be_given_for_each_image() -> None:
    """A row gets what a float for the batch would give it."""
    _, _, inputs = batch_of(6, (16, 16))
    highs = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    plan = get("resizemix", low=0.1, high=highs).plan(inputs, Streams([9]))
    for row, high in enumerate(highs.tolist()):
        alone = get("resizemix", low=0.1, high=high).plan(inputs, Streams([9]))
        assert torch.equal(alone.label_shares[row], plan.label_shares[row])
    one = get("resizemix", low=0.4, scope="batch").plan(inputs, Streams([9]))
    assert one.place is not None
    assert torch.equal(one.place, one.place[:1].expand(6, 4))


def test_bad_bounds_are_refused() -> None:
    """Each message says what was given."""
    with pytest.raises(MethodError, match=r"`high` must be a number in \[0, 1\], got 1.5"):
        get("resizemix", high=1.5)
    with pytest.raises(MethodError, match="`low` must not be above `high`, got 0.5 and 0.2"):
        get("resizemix", low=0.5, high=0.2)
    with pytest.raises(MethodError, match="`low` must not be above `high`, got 0.5 and tensor"):
        get("resizemix", low=0.5, high=torch.tensor([0.6, 0.2]))
