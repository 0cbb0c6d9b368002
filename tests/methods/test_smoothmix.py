"""SmoothMix, against a loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix import apply
from rlmix.errors import MethodError
from rlmix.methods import get
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of, sources_seen


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (1, 6)])
def test_the_partner_fades_in_by_a_gaussian(size: tuple[int, int]) -> None:
    """Each weight by `math.exp`, each label by the mean of the weights."""
    _, _, inputs = batch_of(12, size)
    plan = get("smoothmix").plan(inputs, Streams([77]))
    key = torch.tensor([77])
    spreads = (0.25 + 0.25 * rng.uniform(key, rng.SCALE, (12,))[0]).tolist()
    centres = rng.uniform(key, rng.CENTRE, (12, 2))[0].tolist()
    weights = torch.zeros(12, *size)
    for row, spread in enumerate(spreads):
        centre_y, centre_x = int(centres[row][0] * size[0]), int(centres[row][1] * size[1])
        for y in range(size[0]):
            for x in range(size[1]):
                down, across = (y - centre_y) / (spread * size[0]), (x - centre_x) / (spread * size[1])
                weights[row, y, x] = math.exp(-0.5 * (down * down + across * across))
    assert torch.allclose(plan.weights[:, 1], weights, atol=1e-6)
    assert torch.allclose(plan.label_shares[:, 0], weights.mean((1, 2)), atol=1e-6)
    assert bool((plan.weights[:, 1].amax((1, 2)) == 1.0).all())


def test_a_label_weighs_what_its_pixels_do() -> None:
    """OpenMixup gives the partner's mean weight to the own label; on images of one value each that is seen at once."""
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 24, 24).contiguous()
    inputs = type(batch_of(2, (24, 24))[2])(2, 24, 24, partners=torch.tensor([1, 0]))
    for key in range(20):
        plan = get("smoothmix", low=0.1, high=0.15).plan(inputs, Streams([key]))
        mixed = apply(images, plan).mean((1, 2, 3))
        targets = plan.soft_targets(torch.tensor([0, 1]), 2)
        # Class 1 is the image of ones: its label weight is the mean of the mixed image.
        assert torch.allclose(targets[:, 1], mixed, atol=1e-6)
        # A narrow Gaussian covers little, so the own image keeps the larger weight.
        assert bool((plan.lam > 0.5).all())


def test_the_mean_weight_has_its_closed_form_away_from_the_borders() -> None:
    """The sum of a Gaussian over a wide lattice is its integral: 2 pi s^2 of the unit square."""
    plan = get("smoothmix", low=0.02, high=0.02).plan(batch_of(400, (200, 200))[2], Streams([1]))
    centred = (plan.window is not None) and (plan.window[0].argmax(1) - 100).abs().maximum(
        (plan.window[1].argmax(1) - 100).abs()
    ) < 60
    assert int(torch.as_tensor(centred).sum()) > 50
    assert torch.allclose(plan.label_shares[centred], torch.tensor(2 * math.pi * 0.02**2), atol=1e-7)


def test_a_wide_gaussian_replaces_the_image_and_a_narrow_one_a_pixel() -> None:
    """The extremes of the width."""
    _, _, inputs = batch_of(5, (8, 8))
    wide = get("smoothmix", low=1e4, high=1e4).plan(inputs, Streams([2]))
    assert torch.allclose(wide.label_shares, torch.ones(5, 1), atol=1e-6)
    narrow = get("smoothmix", low=1e-3, high=1e-3).plan(inputs, Streams([2]))
    assert torch.equal(narrow.label_shares, torch.full((5, 1), 1 / 64))
    seen = sources_seen(narrow)
    for row, partner in enumerate(narrow.partners[:, 0].tolist()):
        assert partner == row or float(seen[row, partner].sum()) == 1.0


def test_bad_widths_are_refused() -> None:
    """Each message says what was given."""
    with pytest.raises(MethodError, match="`low` must be a number above 0, got 0.0"):
        get("smoothmix", low=0.0)
    with pytest.raises(MethodError, match="`low` must not be above `high`, got 0.25 and 0.2"):
        get("smoothmix", high=0.2)
