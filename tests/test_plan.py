"""rlmix.MixPlan: labels, joining, credit and checks."""

from __future__ import annotations

import pytest
import torch

from rlmix import MixPlan, apply
from rlmix.errors import PlanError
from rlmix.methods import get
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of, sources_seen


def cell_plan() -> MixPlan:
    """Return a plan with two partners in each of 2x2 cells, for three images of 5x4."""
    generator = torch.Generator().manual_seed(2)
    partners = torch.randint(0, 3, (3, 2, 2, 2), generator=generator)
    shares = torch.rand(3, 2, 2, 2, generator=generator) / 2
    # Rows 0, 1, 2 of five lie in the first cell: areas .6 and .4 down, .5 and .5 across.
    areas = torch.tensor([[0.3, 0.3], [0.2, 0.2]])
    return MixPlan(size=(5, 4), partners=partners, shares=shares, label_shares=shares * areas)


def test_labels_of_partners_by_cell_follow_the_pixels() -> None:
    """Co-Mixup gives each cell partners of its own."""
    plan = cell_plan()
    seen = sources_seen(plan).mean((2, 3))
    assert torch.allclose(plan.soft_targets(torch.arange(3), 3), seen, atol=1e-6)
    assert torch.allclose(plan.lam, seen.diagonal(), atol=1e-6)
    assert plan.sources.shape == (3, 3, 2, 2)
    assert plan.label_weights.shape == (3, 9)
    assert torch.allclose(plan.label_weights.sum(1), torch.ones(3))


def test_label_smoothing_spreads_its_share_evenly() -> None:
    """Smoothing 0.1 over 4 classes leaves 0.9 of the row and adds 0.025 everywhere."""
    plan = get("mixup").plan(batch_of(4, (4, 4))[2], Streams([0]))
    plain, smooth = (plan.soft_targets(torch.arange(4), 4, label_smoothing=value) for value in (0.0, 0.1))
    assert torch.allclose(smooth, 0.9 * plain + 0.025)


def test_an_image_paired_with_itself_counts_as_its_own() -> None:
    """A permutation may leave an image in its place; its label is unmixed then."""
    plan = MixPlan(
        size=(2, 2),
        partners=torch.tensor([[0], [2], [1]]),
        shares=torch.full((3, 1, 1, 1), 0.25),
        label_shares=torch.full((3, 1), 0.25),
    )
    assert plan.lam.tolist() == [1.0, 0.75, 0.75]


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_joined_plans_do_what_each_part_does_alone(size: tuple[int, int]) -> None:
    """Methods with windows, grids of 4 and 2, no partner at all, and partners by cell, in one batch."""
    _, _, inputs = batch_of(6, size)
    parts = []
    expected = torch.zeros(30, 3, *size)
    targets = torch.zeros(30, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    everything = torch.randn(30, 3, *size, generator=torch.Generator().manual_seed(3))
    names = ("none", "cutmix", "rmix", "mixup", "grafting")
    for index, name in enumerate(names):
        rows = order[index * 6 : index * 6 + 6]
        plan = get(name).plan(inputs, Streams([index]))
        parts.append((rows, plan))
        expected[rows] = apply(everything[rows], plan)
        targets[rows.unsqueeze(1), rows] = plan.soft_targets(torch.arange(6), 6)
    joined = MixPlan.merge(parts, 30)
    assert torch.allclose(apply(everything, joined), expected, atol=1e-6)
    assert torch.allclose(joined.soft_targets(torch.arange(30), 30), targets, atol=1e-6)
    assert torch.equal(apply(everything, joined)[parts[0][0]], everything[parts[0][0]])


def test_plans_with_moves_places_and_cells_join_too() -> None:
    """Transport, other placements and partners by cell have fields that the others lack."""
    generator = torch.Generator().manual_seed(4)
    size = (6, 4)
    moved = MixPlan(
        size=size,
        partners=torch.tensor([[1], [0]]),
        shares=torch.rand(2, 1, 3, 2, generator=generator),
        label_shares=torch.rand(2, 1, generator=generator),
        moves=torch.randint(-1, 6, (2, 2, 3, 2), generator=generator).int(),
    )
    placed = MixPlan(
        size=size,
        partners=torch.tensor([[1], [0]]),
        shares=torch.ones(1, 1, 1, 1),
        label_shares=torch.rand(2, 1, generator=generator),
        window=(torch.ones(2, 6), torch.tensor([[0.0, 1, 1, 0], [1, 1, 0, 0]])),
        place=torch.tensor([[2.0, 2.0, 1.0, 1.0], [1.5, 2.0, 0.0, 0.0]]),
    )
    cells = MixPlan(
        size=size,
        partners=torch.randint(0, 2, (2, 2, 2, 2), generator=generator),
        shares=torch.full((2, 2, 2, 2), 0.5),
        label_shares=torch.full((2, 2, 2, 2), 0.125),
    )
    images = torch.randn(6, 2, *size, generator=generator)
    parts = [(torch.tensor([4, 1]), moved), (torch.tensor([0, 5]), placed), (torch.tensor([2, 3]), cells)]
    joined = MixPlan.merge(parts, 6)
    mixed, targets = apply(images, joined), joined.soft_targets(torch.arange(6), 6)
    for rows, plan in parts:
        assert torch.allclose(mixed[rows], apply(images[rows], plan), atol=1e-6)
        assert torch.allclose(targets[rows][:, rows], plan.soft_targets(torch.arange(2), 2), atol=1e-6)


def test_rows_are_chosen_from_several_plans_of_one_batch() -> None:
    """A mixture that chooses for each image takes row b from one member's plan."""
    images, labels, inputs = batch_of(12, (8, 8))
    plans = [get(name).plan(inputs, Streams([3])) for name in ("none", "cutmix", "rmix")]
    choice = torch.arange(12) % 3
    chosen = MixPlan.select(plans, choice)
    singles = torch.stack([apply(images, plan) for plan in plans])
    assert torch.allclose(apply(images, chosen), singles[choice, torch.arange(12)], atol=1e-6)
    targets = torch.stack([plan.soft_targets(labels, 12) for plan in plans])
    assert torch.allclose(chosen.soft_targets(labels, 12), targets[choice, torch.arange(12)], atol=1e-6)


def test_credit_is_the_adjoint_of_apply() -> None:
    """<apply(images), maps> = <images, credit(maps)> for single-channel images."""
    for plan in (cell_plan(), get("cutmix").plan(batch_of(3, (5, 4))[2], Streams([1]))):
        generator = torch.Generator().manual_seed(0)
        images, maps = torch.randn(3, 1, 5, 4, generator=generator), torch.rand(3, 5, 4, generator=generator)
        left = (apply(images, plan).squeeze(1) * maps).sum()
        right = (images.squeeze(1) * plan.credit(maps)).sum()
        assert torch.allclose(left, right, atol=1e-5)


def test_rows_that_are_not_applied_keep_their_cells_in_place() -> None:
    """An unmixed row must not be transported either."""
    plan = MixPlan(
        size=(2, 2),
        partners=torch.tensor([[1], [0]]),
        shares=torch.ones(1, 1, 1, 1),
        label_shares=torch.ones(2, 1),
        moves=torch.zeros(2, 2, 2, 2, dtype=torch.int32),
    )
    images = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    kept = apply(images, plan.where(torch.tensor([False, True])))
    assert torch.equal(kept[0], images[0])
    assert torch.equal(kept[1], images[0, :, :1, :1].expand(1, 2, 2))


def test_equal_plans_are_told_from_different_ones() -> None:
    """Replays are compared with this."""
    inputs = batch_of(4, (4, 4))[2]
    first, second, third = (get("cutmix").plan(inputs, Streams([key])) for key in (1, 1, 2))
    assert first.equal(second)
    assert first.equal(first.to("cpu"))
    assert not first.equal(third)
    assert not first.equal(get("mixup").plan(inputs, Streams([1])))


def test_fields_that_contradict_each_other_are_refused() -> None:
    """A plan of a wrong shape would broadcast into a wrong mix."""
    fields = {
        "size": (4, 4),
        "partners": torch.tensor([[1], [0]]),
        "shares": torch.ones(2, 1, 1, 1),
        "label_shares": torch.ones(2, 1),
    }
    MixPlan(**fields)
    for change, message in (
        ({"partners": torch.ones(2, 1)}, "`partners` must be int64"),
        ({"partners": torch.tensor([1, 0])}, "`partners` must be int64"),
        ({"label_shares": torch.ones(2)}, "`label_shares` must be float32 of the shape"),
        ({"label_shares": torch.ones(2, 1).double()}, "`label_shares` must be float32"),
        ({"shares": torch.ones(2, 2, 1, 1)}, "`shares` must be"),
        ({"shares": torch.ones(3, 1, 1, 1)}, "`shares` must be"),
        ({"window": (torch.ones(2, 4), torch.ones(2, 5))}, "`window` must be"),
        ({"moves": torch.zeros(2, 1, 2, 2, dtype=torch.int32)}, "`moves` must be"),
        ({"place": torch.ones(2, 2)}, "`place` must be"),
    ):
        with pytest.raises(PlanError, match=message):
            MixPlan(**{**fields, **change})


def test_parts_that_do_not_fit_together_are_refused() -> None:
    """Rows left out would stay uninitialised memory."""
    plan = get("cutmix").plan(batch_of(4, (4, 4))[2], Streams([1]))
    other = get("cutmix").plan(batch_of(4, (4, 6))[2], Streams([1]))
    with pytest.raises(PlanError, match=r"must hold 8 rows together, got \[4\]"):
        MixPlan.merge([(torch.arange(4), plan)], 8)
    with pytest.raises(PlanError, match="as many rows as it has"):
        MixPlan.merge([(torch.arange(6), plan), (torch.arange(6, 8), plan)], 8)
    with pytest.raises(PlanError, match="different image sizes"):
        MixPlan.merge([(torch.arange(4), plan), (torch.arange(4, 8), other)], 8)
