"""GuidedMixup, against loops over pixels and rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlmix import MixInputs, apply
from rlmix.errors import MethodError
from rlmix.methods import get
from rlmix.ops.blur import gaussian_blur
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def blurred(maps: Tensor) -> Tensor:
    """Blur maps [B, h, w] by the 49 values of a 7x7 Gaussian of sigma 3, and bring them to the sum 1."""
    kernel = torch.zeros(7, 7, dtype=torch.float64)
    for y in range(7):
        for x in range(7):
            kernel[y, x] = math.exp(-((y - 3) ** 2 + (x - 3) ** 2) / (2 * 3.0**2))
    padded = functional.pad(maps.double().unsqueeze(1), (3, 3, 3, 3), mode="reflect")
    result = functional.conv2d(padded, (kernel / kernel.sum()).view(1, 1, 7, 7)).squeeze(1)
    return result / result.sum((1, 2), keepdim=True)


def distance(maps: Tensor, one: int, two: int) -> float:
    """Return the Euclidean distance of two maps, as a literal sum."""
    difference = (maps[one] - maps[two]).flatten().tolist()
    return math.sqrt(math.fsum(value * value for value in difference))


def greedy_cycle(maps: Tensor) -> list[int]:
    """Return each row's partner: farthest pair first, then from row to the farthest row that is left."""
    rows = range(len(maps))
    start = max((distance(maps, one, two), -one, -two) for one in rows for two in rows if one != two)
    visited = [-start[1]]
    while len(visited) < len(maps):
        left = [row for row in rows if row not in visited]
        visited.append(max(left, key=lambda row: (distance(maps, visited[-1], row), -row)))
    partners = [0] * len(maps)
    for here, there in zip(visited, [*visited[1:], visited[0]], strict=True):
        partners[here] = there
    return partners


def mutual_pairs(maps: Tensor) -> list[int]:
    """Return each row's partner by 8 rounds of mutual farthest choice, and in order after that."""
    partners, free = list(range(len(maps))), list(range(len(maps)))
    for _ in range(8):
        wish = {
            row: max((other for other in free if other != row), key=lambda other: (distance(maps, row, other), -other))
            for row in free
            if len(free) > 1
        }
        for row in [row for row in wish if wish[wish[row]] == row]:
            partners[row] = wish[row]
            free.remove(row)
    for one, two in zip(free[::2], free[1::2], strict=False):
        partners[one], partners[two] = two, one
    return partners


def test_each_pixel_weighs_the_images_by_their_saliency() -> None:
    """The label weight of the own image is the mean of its pixel weights; partners are those of the cycle.

    OpenMixup computes the cycle and then mixes with a random permutation.
    """
    size = (20, 28)
    images, labels, inputs = batch_of(7, size)
    assert inputs.saliency is not None
    plan = get("guidedmixup").plan(inputs, Streams([3]))
    maps = blurred(inputs.saliency)
    partners = greedy_cycle(maps)
    assert plan.partners[:, 0].tolist() == partners
    mixed, targets = torch.zeros_like(images), torch.zeros(7, 7)
    for row, partner in enumerate(partners):
        own = maps[row] / (maps[row] + maps[partner])
        mixed[row] = (own * images[row] + (1.0 - own) * images[partner]).float()
        targets[row, row] += float(own.mean())
        targets[row, partner] += 1.0 - float(own.mean())
    # Weights are kept as float16, whose steps below 1 are 2^-11.
    assert torch.allclose(apply(images, plan), mixed, atol=1e-2)
    own = maps / (maps + maps[partners])
    assert torch.allclose(plan.weights[:, 0], own.float(), atol=2.0**-11)
    assert torch.allclose(plan.soft_targets(labels, 7), targets, atol=2.0**-11)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("pairing", ["cycle", "mutual"])
def test_partners_are_those_of_a_loop_in_every_group(count: int, pairing: str) -> None:
    """One cycle through all rows, or pairs; partners never cross a group."""
    maps = torch.rand(3 * count, 12, 12, generator=torch.Generator().manual_seed(count)) ** 4
    inputs = MixInputs(3 * count, 12, 12, groups=3, saliency=maps)
    partners = get("guidedmixup", pairing=pairing).plan(inputs, Streams([1, 2, 3])).partners[:, 0]
    smooth = blurred(maps)
    for group in range(3):
        rows = slice(group * count, group * count + count)
        chosen = greedy_cycle(smooth[rows]) if pairing == "cycle" and count > 1 else mutual_pairs(smooth[rows])
        assert (partners[rows] - group * count).tolist() == chosen


def test_rows_that_are_left_over_are_paired_in_order() -> None:
    """Equal maps give no farthest row: every round makes one pair, the rest meet in order, an odd one itself."""
    inputs = MixInputs(21, 8, 8, saliency=torch.ones(21, 8, 8))
    partners = get("guidedmixup", pairing="mutual").plan(inputs, Streams([0])).partners[:, 0]
    assert partners.tolist() == [row ^ 1 for row in range(20)] + [20]
    assert sorted(get("guidedmixup").plan(inputs, Streams([0])).partners[:, 0].tolist()) == list(range(21))


def test_pixels_without_saliency_are_halved() -> None:
    """0 / 0 counts as one half; where one image alone is salient it is copied."""
    maps = torch.zeros(2, 32, 32)
    maps[0, :8, :8], maps[1, 24:, 24:] = 1.0, 1.0
    images, _, _ = batch_of(2, (32, 32))
    plan = get("guidedmixup").plan(MixInputs(2, 32, 32, saliency=maps), Streams([0]))
    mixed = apply(images, plan)
    assert torch.equal(mixed[0, :, :11, :11], images[0, :, :11, :11])
    assert torch.equal(mixed[1, :, :11, :11], images[0, :, :11, :11])
    assert torch.allclose(mixed[0, :, 12:20, 12:20], (images[0] + images[1])[:, 12:20, 12:20] / 2, atol=1e-6)
    assert torch.equal(plan.lam, torch.full((2,), 0.5))


def test_a_coarse_map_is_not_blurred_and_a_fine_one_is_pooled() -> None:
    """The blur covers the same part of the image whatever grid the map has."""
    coarse = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    plan = get("guidedmixup", pairing="reverse").plan(MixInputs(4, 32, 32, saliency=coarse), Streams([0]))
    scaled = coarse / coarse.sum((1, 2), keepdim=True)
    theirs = scaled.flip(0)
    assert torch.equal(plan.shares[:, 0], (theirs / (scaled + theirs)).half())
    fine = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(1))
    pooled = functional.avg_pool2d(fine.unsqueeze(1), 2).squeeze(1)
    method = get("guidedmixup", pairing="mutual")
    from_fine = method.plan(MixInputs(4, 32, 32, saliency=fine), Streams([0]))
    from_pooled = method.plan(MixInputs(4, 32, 32, saliency=pooled), Streams([0]))
    assert torch.equal(from_fine.partners, from_pooled.partners)
    assert torch.allclose(from_fine.weights, from_pooled.weights, atol=1e-3)


def test_partners_may_be_given_or_drawn() -> None:
    """As with every method, partners given come first; an unknown rule is refused."""
    _, _, inputs = batch_of(6, (16, 16))
    given = MixInputs(6, 16, 16, saliency=inputs.saliency, partners=torch.arange(6).roll(1))
    assert torch.equal(get("guidedmixup").plan(given, Streams([0])).partners[:, 0], torch.arange(6).roll(1))
    drawn = get("guidedmixup", pairing="random").plan(inputs, Streams([4])).partners
    assert torch.equal(drawn, get("mixup").plan(inputs, Streams([4])).partners)
    with pytest.raises(MethodError, match="`pairing` must be one of 'cycle', 'mutual', .* got 'near'"):
        get("guidedmixup", pairing="near")
    assert get("guidedmixup").operations_grow
    assert not get("guidedmixup", pairing="mutual").operations_grow


def test_eight_rounds_of_mutual_choice_come_before_the_order() -> None:
    """Maps along a line: the two ends choose each other in each round, and the four in the middle are left over."""
    along = torch.linspace(0, 1, 20)
    maps = torch.stack([along, 1.0 - along], 1).view(20, 1, 2)
    plan = get("guidedmixup", pairing="mutual").plan(MixInputs(20, 32, 32, saliency=maps), Streams([0]))
    assert plan.partners[:, 0].tolist() == [*range(19, 11, -1), 9, 8, 11, 10, *range(7, -1, -1)]


def test_each_side_is_blurred_by_its_own_number_of_cells() -> None:
    """A map as fine as the image along the height and an eighth as fine along the width."""
    maps = torch.rand(2, 32, 4, generator=torch.Generator().manual_seed(2))
    plan = get("guidedmixup", pairing="reverse").plan(MixInputs(2, 32, 32, saliency=maps), Streams([0]))
    smooth = gaussian_blur(maps, (3, 0), (3.0, 0.375))
    smooth = smooth / smooth.sum((1, 2), keepdim=True)
    assert torch.equal(plan.shares[:, 0], (smooth.flip(0) / (smooth + smooth.flip(0))).half())
