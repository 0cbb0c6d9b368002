"""SaliencyMix, against slow literal versions of the paper's and of the released code's steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmix import MixInputs, MixPlan, apply
from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.methods.saliencymix import PLACEMENTS
from rlmix.ops import rng
from rlmix.ops.rng import Streams, derive
from rlmix.testing.methods import batch_of


def side_of(length: int, lam: Tensor) -> int:
    """Return `int(length * sqrt(1 - lam))` in the precision that lam has."""
    return int(np.float32(length) * np.sqrt(np.float32(1.0) - np.float32(float(lam))))


def extreme(saliency: Tensor, *, highest: bool) -> tuple[int, int]:
    """Return row and column of the first highest, or lowest, pixel by looking at each."""
    best, place = None, (0, 0)
    for y in range(saliency.shape[0]):
        for x in range(saliency.shape[1]):
            value = float(saliency[y, x]) if highest else -float(saliency[y, x])
            if best is None or value > best:
                best, place = value, (y, x)
    return place


def inside(centre: int, side: int, length: int) -> int:
    """Return the first pixel of an interval around `centre`, moved into the image pixel by pixel."""
    first = centre - side // 2
    while first < 0:
        first += 1
    while first + side > length:
        first -= 1
    return first


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_papers_mode_is_the_loop_over_pairs(placement: str, size: tuple[int, int]) -> None:
    """One map and one box for each pair, of its whole size, inside both images."""
    images, labels, inputs = batch_of(12, size)
    assert inputs.saliency is not None
    streams = Streams([41])
    plan = get("saliencymix", alpha=0.7, placement=placement).plan(inputs, streams)
    lams = rng.beta(streams.values, rng.LAM, (12,), 0.7)[0]
    expected, targets = images.clone(), torch.eye(12)
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        source = extreme(inputs.saliency[partner], highest=placement.startswith("salient"))
        if placement.endswith("corresponding"):
            target = source
        else:
            target = extreme(inputs.saliency[row], highest=placement.endswith("-salient"))
        if partner == row:
            continue
        height, width = (side_of(length, lams[row]) for length in size)
        top, left = (
            inside(centre, side, length) for centre, side, length in zip(source, (height, width), size, strict=True)
        )
        down, across = (
            inside(centre, side, length) for centre, side, length in zip(target, (height, width), size, strict=True)
        )
        for y in range(height):
            for x in range(width):
                expected[row, :, down + y, across + x] = images[partner, :, top + y, left + x]
        share = height * width / (size[0] * size[1])
        targets[row, row] -= share
        targets[row, partner] += share
    assert torch.equal(apply(images, plan), expected)
    torch.testing.assert_close(plan.soft_targets(labels, 12), targets, rtol=0.0, atol=1e-6)


def released_box(saliency: Tensor, lam: Tensor) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) as in the released code, for a square map."""
    side = saliency.shape[1]
    cut = side_of(side, lam)
    peak = int(saliency.flatten().argmax())
    row, column = peak // side, peak % side
    ends = [
        min(max(value, 0), side) for value in (row - cut // 2, row + cut // 2, column - cut // 2, column + cut // 2)
    ]
    return ends[0], ends[1], ends[2], ends[3]


@pytest.mark.parametrize("key", range(6))
def test_the_released_mode_is_one_clipped_box_for_the_batch(key: int) -> None:
    """That of the partner of the first image; the label by what is left of it."""
    images, labels, inputs = batch_of(8, (16, 16), seed=key)
    assert inputs.saliency is not None
    streams = Streams([key])
    plan = get("saliencymix", mode="released").plan(inputs, streams)
    order = plan.partners[:, 0]
    lam = rng.beta(streams.values, rng.LAM, (1,), 1.0)[0, 0]
    top, bottom, left, right = released_box(inputs.saliency[order[0]], lam)
    expected = images.clone()
    expected[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / 256
    targets = (1 - share) * torch.eye(8) + share * torch.eye(8)[order]
    assert torch.equal(apply(images, plan), expected)
    torch.testing.assert_close(plan.soft_targets(labels, 8), targets, rtol=0.0, atol=1e-6)


def test_each_group_has_the_box_of_its_own_first_partner() -> None:
    """In a pool of classifiers a batch is a group."""
    images, _, inputs = batch_of(12, (16, 16), groups=3)
    assert inputs.saliency is not None
    keys = [derive(5, group) for group in range(3)]
    streams = Streams(keys)
    plan = get("saliencymix", mode="released").plan(inputs, streams)
    lams = rng.beta(streams.values, rng.LAM, (1,), 1.0)[:, 0]
    mixed = apply(images, plan)
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        order = plan.partners[rows, 0]
        top, bottom, left, right = released_box(inputs.saliency[order[0]], lams[group])
        expected = images[rows].clone()
        expected[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
        assert torch.equal(mixed[rows], expected)


def test_a_moved_box_of_the_released_mode_is_clipped_at_both_places() -> None:
    """Nothing is invented for what lies outside the partner."""
    saliency = torch.full((2, 8, 8), 0.5)
    # Image 0 is lowest at its top left; its partner is highest at the bottom right.
    saliency[0, 1, 2], saliency[1, 6, 7] = 0.0, 1.0
    inputs = MixInputs(2, 8, 8, saliency=saliency, partners=torch.tensor([1, 0]))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    method = get("saliencymix", mode="released", placement="salient-nonsalient")
    for key in range(20):
        streams = Streams([key])
        half = side_of(8, rng.beta(streams.values, rng.LAM, (1,), 1.0)[0, 0]) // 2
        expected = images.clone()
        for y in range(-half, half):
            for x in range(-half, half):
                if y >= -1 and y < 2 and x >= -2 and x < 1:
                    expected[0, :, 1 + y, 2 + x] = images[1, :, 6 + y, 7 + x]
        assert torch.equal(apply(images, method.plan(inputs, streams))[0], expected[0])


def box_of(plan: MixPlan, row: int) -> tuple[list[int], list[int]]:
    """Return the rows and the columns that are covered."""
    assert plan.window is not None
    rows, columns = (side[row].nonzero().flatten().tolist() for side in plan.window)
    return rows, columns


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), down=st.integers(1, 12), across=st.integers(1, 12),
    key=st.integers(0, 2**62),
)  # fmt: skip
def test_a_box_keeps_its_size_and_holds_the_peak(height: int, width: int, down: int, across: int, key: int) -> None:
    """For images and maps of any size: a coarse map's peak is the pixel in the middle of its highest cell."""
    generator = torch.Generator().manual_seed(key % 2**31)
    saliency = torch.rand(6, down, across, generator=generator)
    streams = Streams([key])
    plan = get("saliencymix").plan(MixInputs(6, height, width, saliency=saliency), streams)
    lams = rng.beta(streams.values, rng.LAM, (6,), 1.0)[0]
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        covered = box_of(plan, row)
        sides = [side_of(length, lams[row]) for length in (height, width)]
        if 0 in sides:
            continue
        assert [len(pixels) for pixels in covered] == sides
        assert all(pixels == list(range(pixels[0], pixels[0] + len(pixels))) for pixels in covered)
        if down <= height and across <= width:
            cell = extreme(saliency[partner], highest=True)
            for pixels, index, count, length in zip(covered, cell, (down, across), (height, width), strict=True):
                members = [pixel for pixel in range(length) if pixel * count // length == index]
                assert members[len(members) // 2] in pixels
        assert math.isclose(
            1.0 - float(plan.label_weights[row, 0]), sides[0] * sides[1] / (height * width), abs_tol=1e-6
        )


def test_a_map_finer_than_the_image_is_averaged_to_its_pixels() -> None:
    """Providers differ in resolution."""
    saliency = torch.zeros(2, 32, 32)
    saliency[:, 20:22, 12:14] = 1.0
    inputs = MixInputs(2, 16, 16, saliency=saliency, partners=torch.tensor([1, 0]))
    for key in range(10):
        rows, columns = box_of(get("saliencymix", alpha=8.0).plan(inputs, Streams([key])), 0)
        assert 10 in rows
        assert 6 in columns


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan")])
def test_a_map_without_relief_puts_the_box_into_the_corner(value: float) -> None:
    """The first of equal pixels is the peak, as in the released code."""
    inputs = MixInputs(4, 16, 16, saliency=torch.full((4, 4, 4), value))
    plan = get("saliencymix", alpha=8.0).plan(inputs, Streams([1]))
    for row in range(4):
        rows, columns = box_of(plan, row)
        assert rows[0] == 0
        assert columns[0] == 0


def test_an_image_that_meets_itself_stays_as_it_is_wherever_boxes_are_pasted() -> None:
    """Its label would say that nothing was changed."""
    images, labels, inputs = batch_of(3, (16, 16))
    inputs = MixInputs(3, 16, 16, saliency=inputs.saliency, partners=torch.tensor([0, 2, 1]))
    for placement in PLACEMENTS:
        plan = get("saliencymix", placement=placement).plan(inputs, Streams([2]))
        assert torch.equal(apply(images, plan)[0], images[0])
        assert torch.equal(plan.soft_targets(labels, 3)[0], torch.eye(3)[0])


def test_one_lam_for_the_batch_gives_boxes_of_one_size_at_places_of_their_own() -> None:
    """`scope="batch"` draws the size once; the peaks stay each image's."""
    _, _, inputs = batch_of(16, (32, 32))
    plan = get("saliencymix", scope="batch", alpha=8.0).plan(inputs, Streams([3]))
    boxes = [box_of(plan, row) for row in range(16)]
    assert len({(len(rows), len(columns)) for rows, columns in boxes}) == 1
    assert len({(rows[0], columns[0]) for rows, columns in boxes}) > 4


def test_parameters_out_of_their_range_and_missing_maps_are_refused() -> None:
    """Each message names what would be right."""
    with pytest.raises(MethodError, match="`mode` must be one of 'paper', 'released', got 'code'"):
        get("saliencymix", mode="code")
    with pytest.raises(MethodError, match="`placement` must be one of 'salient-corresponding', .*, got 'salient'"):
        get("saliencymix", placement="salient")
    with pytest.raises(MethodError, match="`alpha` must be a number above 0"):
        get("saliencymix", alpha=0)
    with pytest.raises(InputError, match="method `saliencymix` needs saliency maps"):
        get("saliencymix").plan(MixInputs(2, 8, 8), Streams([0]))
