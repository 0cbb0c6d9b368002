"""rlmix.MixPlan: labels, joining, credit and checks."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlmix import MixPlan, apply
from rlmix._files import save_tree
from rlmix.errors import CheckpointError, InputError, PlanError
from rlmix.methods import get
from rlmix.ops import grid
from rlmix.ops.rng import Streams
from rlmix.testing.methods import OperationCounter, batch_of, sources_seen


def cell_plan() -> MixPlan:
    """Return a plan with two partners in each of 2x2 cells, for three images of 5x4."""
    generator = torch.Generator().manual_seed(2)
    partners = torch.randint(0, 3, (3, 2, 2, 2), generator=generator)
    shares = torch.rand(3, 2, 2, 2, generator=generator) / 2
    # Rows 0, 1, 2 of five lie in the first cell: areas .6 and .4 down, .5 and .5 across.
    areas = torch.tensor([[0.3, 0.3], [0.2, 0.2]])
    return MixPlan(size=(5, 4), partners=partners, shares=shares, label_shares=shares * areas)


def random_plan(generator: torch.Generator, batch: int, size: tuple[int, int]) -> MixPlan:
    """Return a plan with each optional field there or not, on grids that need not divide the image."""

    def chance() -> bool:
        return bool(torch.rand(1, generator=generator) < 0.5)

    def cells() -> tuple[int, int]:
        down, across = (int(torch.randint(1, side + 1, (1,), generator=generator)) for side in size)
        return down, across

    count = int(torch.randint(1, 4, (1,), generator=generator))
    partner_shape = (batch, count, *(cells() if chance() else ()))
    shares = torch.rand(batch if chance() else 1, count, *cells(), generator=generator)
    label_shares = torch.rand(partner_shape, generator=generator)
    moved = cells()
    return MixPlan(
        size=size,
        partners=torch.randint(0, batch, partner_shape, generator=generator),
        shares=shares / shares.sum(1, keepdim=True).clamp_min(1.0),
        label_shares=label_shares / math.prod(partner_shape[1:]),
        window=tuple(torch.rand(batch, side, generator=generator) for side in size) if chance() else None,  # type: ignore[arg-type]
        moves=torch.randint(-1, math.prod(moved), (batch, count + 1, *moved), generator=generator).int()
        if chance()
        else None,
        place=torch.rand(batch, 4, generator=generator) * 2 if chance() else None,
    )


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


def test_lam_is_never_outside_its_range_nor_off_for_an_image_with_itself() -> None:
    """1 - s + s is not always 1 in float32, and a policy may compare lam with 1."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(4000, 5, generator=generator)
    shares = shares / shares.sum(1, keepdim=True)
    own = torch.arange(4000).unsqueeze(1).expand(-1, 5).contiguous()
    others = torch.randint(0, 4000, (4000, 5), generator=generator)
    for partners in (own, others):
        fields: dict[str, Any] = {"size": (1, 1), "partners": partners, "label_shares": shares}
        plan = MixPlan(shares=shares.view(4000, 5, 1, 1), **fields)
        exact = 1.0 - (shares.double() * (partners != own)).sum(1)
        assert torch.allclose(plan.lam.double(), exact, atol=1e-6)
        assert bool((plan.lam <= 1.0).all())
    assert torch.equal(MixPlan(shares=torch.zeros(1, 5, 1, 1), **{**fields, "partners": own}).lam, torch.ones(4000))


@pytest.mark.parametrize("seed", range(6))
def test_dense_targets_are_mixed_as_a_loop_does(seed: int) -> None:
    """Soft labels and several labels an image, partners by cell or not; half precision is summed in float32."""
    plan = random_plan(torch.Generator().manual_seed(seed), 4, (6, 5))
    dense = torch.rand(4, 7, generator=torch.Generator().manual_seed(9)) * 2
    expected = torch.zeros(4, 7, dtype=torch.float64)
    for row in range(4):
        shares = plan.label_shares[row].flatten().double()
        expected[row] += (1.0 - shares.sum()) * dense[row]
        for share, partner in zip(shares, plan.partners[row].flatten(), strict=True):
            expected[row] += share * dense[partner]
    assert torch.allclose(plan.mix_targets(dense).double(), expected, atol=1e-5)
    mixed = plan.mix_targets(dense)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plan.mix_targets(dense), mixed)
    assert plan.mix_targets(dense.half()).dtype == torch.float32
    assert torch.allclose(plan.mix_targets(dense.half()).double(), expected, atol=2e-3)
    assert torch.allclose(plan.mix_targets(torch.eye(4)), plan.soft_targets(torch.arange(4), 4), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (33, 7), (5, 6)])
def test_labels_with_several_classes_follow_the_pixels_that_are_seen(size: tuple[int, int]) -> None:
    """A peer returned the partner's rows for dense labels while most pixels were the own image's."""
    _, _, inputs = batch_of(9, size)
    dense = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)).round()
    for key in range(5):
        plan = get("cutmix").plan(inputs, Streams([key]))
        seen = sources_seen(plan).mean((2, 3))
        assert torch.allclose(plan.mix_targets(dense), seen @ dense, atol=1e-6)
        unmixed = plan.label_shares[:, 0] == 0
        assert torch.equal(plan.mix_targets(dense)[unmixed], dense[unmixed])


@pytest.mark.parametrize("seed", range(12))
def test_class_maps_take_the_source_that_is_seen_most(seed: int) -> None:
    """Slot by slot by `apply` with only that slot, then a loop over pixels; moved, placed and by cell."""
    batch, size = 3, (6, 5)
    plan = random_plan(torch.Generator().manual_seed(seed), batch, size)
    maps = torch.randint(1, 20, (batch, *size), generator=torch.Generator().manual_seed(seed))
    weights = grid.expand(plan.weights, size)
    slots = weights.shape[1]
    shown = []
    for slot in range(slots):
        only = torch.zeros(batch, slots - 1, 1, 1)
        if slot:
            only[:, slot - 1] = 1.0
        alone = dataclasses.replace(plan, shares=only, window=None)
        shown.append(apply(maps.unsqueeze(1).double(), alone).squeeze(1).long())
    expected = torch.zeros_like(maps)
    for row in range(batch):
        for y in range(size[0]):
            for x in range(size[1]):
                each = weights[row, :, y, x].tolist()
                expected[row, y, x] = shown[each.index(max(each))][row, y, x]
    assert torch.equal(plan.apply_mask(maps), expected)
    assert torch.equal(plan.apply_mask(maps.byte().unsqueeze(1)), expected.byte().unsqueeze(1))
    assert torch.equal(plan.apply_mask(maps, fill=255) == 255, expected == 0)


def test_class_maps_of_methods_without_partners_and_of_equal_weights_are_the_own_ones() -> None:
    """A tie must not depend on the order in which slots are looked at."""
    maps = torch.arange(32).view(2, 4, 4)
    assert torch.equal(get("none").plan(batch_of(2, (4, 4))[2], Streams([0])).apply_mask(maps), maps)
    half = torch.full((2, 1, 1, 1), 0.5)
    plan = MixPlan(size=(4, 4), partners=torch.tensor([[1], [0]]), shares=half, label_shares=half[:, :, 0, 0])
    assert torch.equal(plan.apply_mask(maps), maps)
    with OperationCounter() as counter:
        plan.apply_mask(maps)
    assert counter.read_backs == []


def test_a_cutmix_box_moves_the_classes_with_the_pixels() -> None:
    """Segmentation training mixes images and class maps by one plan."""
    images, _, inputs = batch_of(5, (16, 12))
    maps = (images[:, 0] > 0).long()
    plan = get("cutmix").plan(inputs, Streams([3]))
    assert torch.equal(plan.apply_mask(maps), (apply(images, plan)[:, 0] > 0).long())


def test_labels_and_class_maps_of_a_wrong_form_are_refused() -> None:
    """Each message names the call that would have been right."""
    plan = get("cutmix").plan(batch_of(4, (4, 6))[2], Streams([1]))
    for call, message in (
        (lambda: plan.pairs(torch.rand(4, 3)), r"Soft labels .* are mixed by plan.mix_targets\(labels.float\(\)\)"),
        (lambda: plan.pairs(torch.arange(3)), r"`labels` must be whole numbers \[4\]"),
        (lambda: plan.soft_targets(torch.rand(4), 3), "`labels` must be whole numbers"),
        (lambda: plan.mix_targets(torch.arange(4)), "For class numbers use plan.soft_targets"),
        (lambda: plan.mix_targets(torch.rand(3, 2)), r"`targets` must be floating point \[4, C\]"),
        (lambda: plan.apply_mask(torch.rand(4, 4, 6)), "soft maps .* are mixed by rlmix.apply"),
        (lambda: plan.apply_mask(torch.zeros(4, 6, 4).long()), r"`segmentation` must be whole numbers \[4, 4, 6\]"),
        (lambda: plan.picture(torch.rand(4, 2, 4, 6)), "1 or 3"),
        (lambda: plan.picture(torch.rand(4, 3, 4, 4)), "drawn for 4 images of 4x6, got 4 of 4x4"),
        (lambda: plan.picture(torch.rand(4, 3, 4, 6), torch.rand(3, 4, 6)), r"`maps` must be \[4, h, w\]"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_whole_labels_of_a_small_type_are_class_numbers() -> None:
    """A uint8 tensor as an index would be taken for a mask."""
    plan = get("mixup").plan(batch_of(4, (4, 4))[2], Streams([1]))
    labels = torch.tensor([3, 1, 0, 2])
    for one, two in zip(plan.pairs(labels.byte()), plan.pairs(labels), strict=True):
        assert one[0].dtype == torch.int64
        assert torch.equal(one[0], two[0])
    assert torch.equal(plan.soft_targets(labels.byte(), 4), plan.soft_targets(labels, 4))


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


@pytest.mark.parametrize("seed", range(20))
def test_random_plans_join_and_are_chosen_from_as_each_does_alone(seed: int) -> None:
    """Grids that do not divide the image, cells that move on different grids, all optional fields there or not."""
    generator = torch.Generator().manual_seed(seed)
    size = ((6, 4), (7, 5))[seed % 2]
    plans = [random_plan(generator, 2, size) for _ in range(3)]
    images = torch.randn(6, 2, *size, generator=generator)
    order = torch.randperm(6, generator=generator)
    parts = list(zip(order.view(3, 2), plans, strict=True))
    joined = MixPlan.merge(parts, 6)
    mixed, targets = apply(images, joined), joined.soft_targets(torch.arange(6), 6)
    for rows, plan in parts:
        assert torch.allclose(mixed[rows], apply(images[rows], plan), atol=1e-5)
        assert torch.allclose(targets[rows][:, rows], plan.soft_targets(torch.arange(2), 2), atol=1e-6)
    choice = torch.tensor([seed % 3, (seed + 1) % 3])
    chosen = MixPlan.select(plans, choice)
    singles = torch.stack([apply(images[:2], plan) for plan in plans])
    assert torch.allclose(apply(images[:2], chosen), singles[choice, torch.arange(2)], atol=1e-5)


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remember how many values the largest tensor has that an operation made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.values = max(self.values, result.numel())
        return result


def test_a_choice_among_many_plans_makes_no_table_of_all_of_them() -> None:
    """Fourteen methods at 224 px would else need fourteen times the memory of one; moves stay on their cells."""
    batch, size = 4, (32, 32)
    shape = (batch, 1, 4, 4)
    fine = MixPlan(
        size=size,
        partners=torch.zeros(batch, 1, dtype=torch.int64),
        shares=torch.zeros(batch, 1, *size),
        label_shares=torch.zeros(batch, 1),
    )
    moved = dataclasses.replace(fine, shares=torch.zeros(shape), moves=torch.zeros(batch, 2, 4, 4, dtype=torch.int32))
    for plans in ([fine, moved] * 7, [moved] * 14):
        largest_field = max(plans[0].shares.numel(), batch * 2 * 4 * 4)
        with LargestTensor() as choosing:
            chosen = MixPlan.select(plans, torch.arange(batch) % 14)
        assert choosing.values <= largest_field
        with LargestTensor() as joining:
            MixPlan.merge([(torch.arange(batch) + index * batch, plan) for index, plan in enumerate(plans)], 14 * batch)
        assert joining.values <= 14 * largest_field
        assert chosen.moves is not None
        assert chosen.moves.shape == (batch, 2, 4, 4)


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


@pytest.mark.parametrize("seed", range(4))
def test_a_saved_plan_is_loaded_bit_for_bit(seed: int, tmp_path: Path) -> None:
    """A logged plan must replay what was trained on."""
    plan = random_plan(torch.Generator().manual_seed(seed), 3, (6, 5))
    for number, kept in enumerate((plan, dataclasses.replace(plan, shares=plan.shares.half()), cell_plan())):
        kept.save(tmp_path / f"{number}.safetensors")
        assert MixPlan.load(tmp_path / f"{number}.safetensors").equal(kept)
        assert MixPlan.from_state(kept.state()).equal(kept)


def test_a_file_that_holds_no_plan_is_refused(tmp_path: Path) -> None:
    """A partner outside the batch would read another image's memory."""
    path = tmp_path / "plan.safetensors"
    plan = get("cutmix").plan(batch_of(4, (4, 6))[2], Streams([1]))
    good = plan.state()
    with pytest.raises(CheckpointError, match="does not exist"):
        MixPlan.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        MixPlan.load(path)
    moves = torch.full((4, 2, 2, 2), 4, dtype=torch.int32)
    for change, message in (
        ({"format": "rlmix.plan/9"}, "its `format` is not 'rlmix.plan/1'"),
        ({"colour": 1}, "it holds .*'colour'.*, expected"),
        ({"partners": torch.full((4, 1), 4)}, r"`partners` has values outside \[0, 4\)"),
        ({"partners": -torch.ones(4, 1).long()}, "`partners` has values outside"),
        ({"label_shares": torch.full((4, 1), float("nan"))}, r"`label_shares` has values outside \[0, 1\]"),
        ({"shares": torch.full((1, 1, 1, 1), 1.5)}, "`shares` has values outside"),
        ({"window": (torch.ones(4, 4), -torch.ones(4, 6))}, "`window` has values outside"),
        ({"moves": moves}, r"`moves` has values outside \[-1, 4\)"),
        ({"place": torch.full((4, 4), float("inf"))}, "`place` has values that are not finite"),
        ({"shares": torch.ones(1, 2, 1, 1)}, "`shares` must be"),
        ({"shares": None}, "the plan's state is damaged"),
        ({"size": 4}, "the plan's state is damaged"),
    ):
        save_tree(path, {**good, **change})
        with pytest.raises(PlanError, match=message) as caught:
            MixPlan.load(path)
        assert str(path) in str(caught.value)
    save_tree(path, [1, 2])
    with pytest.raises(PlanError, match="its `format` is not"):
        MixPlan.load(path)


def test_a_picture_shows_own_partner_weight_mix_and_map() -> None:
    """Panels of known places, each compared with what it shows."""
    images, _, inputs = batch_of(3, (6, 5))
    images = images.sigmoid()
    plan = get("cutmix").plan(inputs, Streams([5]))
    maps = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(0))
    sheet = plan.picture(images, maps, gap=2)
    assert sheet.shape == (3, 3 * (6 + 2) + 2, 5 * (5 + 2) + 2)
    assert sheet.dtype == torch.float32

    def panel(row: int, column: int) -> Tensor:
        return sheet[:, row * 8 + 2 : row * 8 + 8, column * 7 + 2 : column * 7 + 7]

    mixed, weights = apply(images, plan), grid.expand(plan.weights[:, :1], (6, 5))
    for row in range(3):
        assert torch.allclose(panel(row, 0), images[row], atol=1e-6)
        assert torch.allclose(panel(row, 1), images[plan.partners[row, 0]], atol=1e-6)
        assert torch.equal(panel(row, 2), weights[row].expand(3, -1, -1))
        assert torch.allclose(panel(row, 3), mixed[row], atol=1e-6)
        expected = grid.expand(maps[row : row + 1] / maps[row].max(), (6, 5))
        assert torch.allclose(panel(row, 4), expected.expand(3, -1, -1), atol=1e-6)
    assert bool((sheet[:, :2] == 1).all())
    assert bool((sheet[:, :, -2:] == 1).all())


def test_pictures_of_normalised_grey_and_unmixed_images_are_in_range_and_limited() -> None:
    """Images as a training has them: standardised, of one channel, a large batch, without partners."""
    images, _, inputs = batch_of(20, (6, 5), channels=1)
    sheet = get("none").plan(inputs, Streams([5])).picture(images * 3, limit=4, gap=1)
    assert sheet.shape == (3, 4 * 7 + 1, 3 * 6 + 1)
    assert 0 <= float(sheet.min()) < float(sheet.max()) <= 1
    moved = random_plan(torch.Generator().manual_seed(3), 20, (6, 5))
    assert bool(torch.isfinite(moved.picture(images.half())).all())


def test_a_picture_needs_no_drawing_library(tmp_path: Path) -> None:
    """A training job on a server has no display, and a deployment not even matplotlib."""
    code = (
        "import sys, torch, rlmix\n"
        "plan = rlmix.methods.get('mixup').draw(rlmix.MixInputs(2, 4, 4), generator=torch.Generator())\n"
        "plan.picture(torch.rand(2, 3, 4, 4))\n"
        "print({'matplotlib', 'PIL', 'torchvision'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
