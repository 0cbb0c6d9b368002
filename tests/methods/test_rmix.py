"""R-Mix, against a slow literal version of the published steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rlmix import apply
from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import grid, rng
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


def published_steps(
    images: Tensor, labels: Tensor, maps: Tensor, side: int, levels: Tensor, partners: Tensor, lam: float
) -> tuple[Tensor, Tensor]:
    """Mix as published: pooled maps that sum to 1, a quantile an image, four cases a pixel, credit by area."""
    patch = images.shape[2] // side
    pooled = functional.avg_pool2d(maps.unsqueeze(1), patch).squeeze(1).double()
    pooled = pooled / pooled.sum((1, 2), keepdim=True)
    count = images.shape[0]
    masks = torch.zeros(count, side, side)
    for row in range(count):
        cut = torch.quantile(pooled[row].flatten(), levels[row].double())
        masks[row] = (pooled[row] >= cut).float()
    masks = masks.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    mixed = torch.zeros_like(images)
    targets = torch.zeros(count, count)
    onehot = torch.eye(count)[labels]
    for row in range(count):
        other = int(partners[row])
        cases = {"equal": 0, "own": 0, "theirs": 0}
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                mine, theirs = bool(masks[row, y, x]), bool(masks[other, y, x])
                if mine == theirs:
                    mixed[row, :, y, x] = lam * images[row, :, y, x] + (1 - lam) * images[other, :, y, x]
                    cases["equal"] += 1
                else:
                    mixed[row, :, y, x] = images[row if mine else other, :, y, x]
                    cases["own" if mine else "theirs"] += 1
        share = {case: pixels / masks[row].numel() for case, pixels in cases.items()}
        targets[row] = share["equal"] * (lam * onehot[row] + (1 - lam) * onehot[other])
        targets[row] += share["own"] * onehot[row] + share["theirs"] * onehot[other]
    return mixed, targets


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_compact_form_is_equal_to_the_published_steps(side: int, seed: int) -> None:
    """The cell weight `lam if equal else k` must give the four cases' pixels and labels."""
    images, labels, inputs = batch_of(7, (16, 16), seed=seed)
    assert inputs.saliency is not None
    streams = Streams([seed])
    plan = get("rmix", grids=(side,), alpha=2.0).plan(inputs, streams)
    steps = rng.integers(streams.values, rng.LEVEL, (7,), 10).flatten()
    levels = torch.from_numpy(np.linspace(0, 0.99, 10))[steps]
    lam = float(rng.beta(streams.values, rng.LAM, (1,), 2.0))
    mixed, targets = published_steps(images, labels, inputs.saliency, side, levels, plan.partners[:, 0], lam)
    assert torch.allclose(apply(images, plan), mixed, atol=2e-6)
    assert torch.allclose(plan.soft_targets(labels, 7), targets, atol=1e-6)


def other_rule(rule: str, mine: bool, theirs: bool, lam: float) -> float:
    """Return the own image's weight in a cell, by the rules that the released code holds and does not use."""
    if rule == "top":
        return 1.0 if mine else 0.0
    if mine == theirs:
        return 1.0 if rule == "differ" else lam
    if rule == "differ":
        return 0.0
    return 0.0 if mine else 1.0


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("rule", ["least", "top", "differ"])
def test_the_other_rules_are_those_of_a_loop(rule: str, scope: str) -> None:
    """Cell by cell on a grid that does not divide the image, and the label by the pixels."""
    size = (10, 15)
    images, labels, inputs = batch_of(7, size)
    assert inputs.saliency is not None
    streams = Streams([6])
    levels = torch.linspace(0.1, 0.9, 7)
    method = get("rmix", grids=(4,), rule=rule, alpha=2.0, threshold=levels, scope=scope)
    plan = method.plan(inputs, streams)
    lams = rng.beta(streams.values, rng.LAM, (7,) if scope == "image" else (1,), 2.0)[0].expand(7).tolist()
    cells = grid.pool(inputs.saliency, (4, 4))
    salient = [
        [[bool(value >= torch.quantile(cells[row].flatten(), levels[row])) for value in line] for line in cells[row]]
        for row in range(7)
    ]
    mixed, targets = torch.zeros_like(images), torch.zeros(7, 7)
    for row, partner in enumerate(plan.partners[:, 0].tolist()):
        for y in range(size[0]):
            for x in range(size[1]):
                down, across = (y * 4) // size[0], (x * 4) // size[1]
                own = other_rule(rule, salient[row][down][across], salient[partner][down][across], lams[row])
                mixed[row, :, y, x] = own * images[row, :, y, x] + (1.0 - own) * images[partner, :, y, x]
                targets[row, row] += own / (size[0] * size[1])
                targets[row, partner] += (1.0 - own) / (size[0] * size[1])
    assert torch.allclose(apply(images, plan), mixed, atol=2e-6)
    assert torch.allclose(plan.soft_targets(labels, 7), targets, atol=2e-6)
    assert method.labels_by_area


def test_the_slip_of_the_released_code_can_be_reproduced() -> None:
    """Pixels of "least" with the labels of "blend": the label of the salient side for the other side's pixels."""
    images, labels, inputs = batch_of(9, (16, 16))
    slip, least, blend = (
        get("rmix", grids=(4,), **params).plan(inputs, Streams([2]))
        for params in ({"rule": "least", "released_labels": True}, {"rule": "least"}, {"rule": "blend"})
    )
    assert torch.equal(apply(images, slip), apply(images, least))
    assert torch.equal(slip.soft_targets(labels, 9), blend.soft_targets(labels, 9))
    assert not torch.allclose(slip.lam, least.lam, atol=1e-2)
    assert not get("rmix", rule="least", released_labels=True).labels_by_area


def test_levels_keep_the_number_of_cells_of_the_specification() -> None:
    """On 4x4 cells without ties the ten levels keep 16, 14, 12, 11, 9, 7, 6, 4, 2 and 1 cell."""
    maps = torch.arange(16.0).view(1, 4, 4).expand(10, 4, 4) + 1
    _, _, inputs = batch_of(10, (4, 4))
    kept = []
    for level in np.linspace(0, 0.99, 10):
        # Against a partner whose mask is the same, no cell differs: look at the mask through a uniform partner's.
        pairs = torch.tensor([1, 0])
        both = torch.stack([maps[0], torch.full((4, 4), 1.0)])
        given = type(inputs)(2, 4, 4, saliency=both, partners=pairs)
        plan = get("rmix", grids=(4,), threshold=float(level), alpha=1e6).plan(given, Streams([0]))
        # The uniform partner's mask is all ones: cells of image 0 below its cut show the partner.
        kept.append(int((plan.shares[0, 0] < 1.0).sum()))
    assert kept == [16, 14, 12, 11, 9, 7, 6, 4, 2, 1]


def test_the_scale_of_a_map_changes_nothing() -> None:
    """So the published normalisation, which divides by zero, is not needed."""
    _, _, inputs = batch_of(6, (8, 8))
    assert inputs.saliency is not None
    scaled = inputs.saliency * torch.tensor([1e-12, 1e-3, 1.0, 10.0, 1e6, 1e12]).view(6, 1, 1)
    first = get("rmix").plan(inputs, Streams([3]))
    second = get("rmix").plan(type(inputs)(6, 8, 8, saliency=scaled), Streams([3]))
    assert first.equal(second)


def test_groups_draw_their_own_grids_lams_and_levels() -> None:
    """One lam and one grid a batch, as published, but each classifier its own."""
    _, _, inputs = batch_of(60, (16, 16), groups=20)
    plan = get("rmix", threshold=0.0).plan(inputs, Streams(list(range(20))))
    # All masks are ones at level 0: every cell is blended with the group's lam.
    shares = plan.shares[:, 0, 0, 0].view(20, 3)
    assert torch.equal(shares, shares[:, :1].expand(20, 3))
    assert shares[:, 0].unique().numel() == 20
    cells = get("rmix", threshold=0.9).plan(inputs, Streams(list(range(20)))).shares.view(20, 3, 4, 4)
    blocks = cells.unflatten(2, (2, 2)).unflatten(4, (2, 2))
    coarse = (blocks == blocks[:, :, :, :1, :, :1]).flatten(1).all(1)
    assert 0 < int(coarse.sum()) < 20


def test_a_threshold_for_each_image_gives_what_the_same_float_gives() -> None:
    """An agent may choose a threshold for each image; groups with different grids split the tensor rightly."""
    _, _, inputs = batch_of(12, (16, 16), groups=4)
    streams = Streams([1, 2, 3, 4])
    levels = torch.linspace(0, 1, 12)
    # The partner's mask depends on the partner's level, so all levels of a float plan are compared at once.
    whole = get("rmix", threshold=levels).plan(inputs, streams)
    same = get("rmix", threshold=torch.full((12,), 0.4)).plan(inputs, streams)
    assert same.equal(get("rmix", threshold=0.4).plan(inputs, streams))
    assert not whole.equal(same)


def test_bad_parameters_and_small_images_are_refused() -> None:
    """Each message says what to give instead."""
    with pytest.raises(MethodError, match=r"`grids` must be whole numbers of at least 1, got \(0,\)"):
        get("rmix", grids=(0,))
    with pytest.raises(MethodError, match=r"`threshold` must be a number in \[0, 1\], got 1.5"):
        get("rmix", threshold=1.5)
    with pytest.raises(MethodError, match="`rule` must be one of 'blend', 'least', 'top', 'differ', got 'most'"):
        get("rmix", rule="most")
    with pytest.raises(MethodError, match="True is for rule='least' only, got True with rule='top'"):
        get("rmix", rule="top", released_labels=True)
    with pytest.raises(InputError, match=r"need images of at least 4 pixels a side, got 3x8"):
        get("rmix").plan(batch_of(2, (3, 8))[2], Streams([0]))
