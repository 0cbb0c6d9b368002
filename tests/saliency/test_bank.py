"""The saliency bank: against literal loops, against the gradient of the network itself, and its refusals."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from rlmix import MixPlan, apply, mix
from rlmix._files import load_tree, save_tree
from rlmix.errors import CheckpointError, InputError
from rlmix.methods import get
from rlmix.ops import grid
from rlmix.ops.rng import Streams, derive
from rlmix.saliency import input_gradient
from rlmix.saliency.bank import SaliencyBank
from rlmix.testing.methods import OperationCounter, batch_of, sources_seen

IDS = torch.tensor([3, 0, 8, 5])


def filled(count: int = 10, side: int = 4, momentum: float = 0.5) -> SaliencyBank:
    """Return a bank that knows every example but number 5."""
    bank = SaliencyBank(count, side, momentum=momentum)
    maps = torch.rand(count, side, side, generator=torch.Generator().manual_seed(1))
    maps[5] = 0.0
    bank.update(torch.arange(count), maps)
    return bank


def literal_refresh(before: Tensor, seen: Tensor, gradient: Tensor, momentum: float) -> Tensor:
    """Refresh maps in plain loops.

    Args:
        before: stored maps [B, h, w], values 0 to 255.
        seen: [B, B, H, W], how much of source i is shown in image b at the very place (no image is moved).
        gradient: [B, C, H, W].
        momentum: of the bank.

    Returns:
        The maps to be stored.
    """
    after = before.clone().double()
    for image in range(len(before)):
        known = bool(before[image].any())
        old = before[image].double() if known else torch.full_like(before[image], 255.0).double()
        value, shares = literal_credit(seen[:, image], gradient, (old.shape[0], old.shape[1]))
        places = [(row, column) for row in range(old.shape[0]) for column in range(old.shape[1])]
        level = max(sum(float(old[place] * shares[place]) for place in places), float(shares.sum()))
        scale = level / sum(float(value[place] * shares[place]) for place in places)
        for place in places:
            rate = float(shares[place]) * (1 - momentum if known else 1)
            old[place] += rate * (float(value[place]) * scale - float(old[place]))
        after[image] = (old / old.max() * 255).round()
    return after


def literal_credit(seen: Tensor, gradient: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the mean strength of the gradient where one image is seen [h, w], and how far each cell is [h, w].

    Args:
        seen: [B, H, W], how much of it is shown in each mixed image.
        gradient: [B, C, H, W].
        shape: (h, w).
    """
    height, width = gradient.shape[2:]
    value, cover, pixels = (torch.zeros(shape).double() for _ in range(3))
    for b, image in enumerate(gradient.double()):
        strength = image.square().mean(0).sqrt()
        mean = float(strength.mean())
        for y in range(height):
            for x in range(width):
                cell = (y * shape[0]) // height, (x * shape[1]) // width
                pixels[cell] += 1 / len(gradient)
                value[cell] += float(seen[b, y, x]) * float(strength[y, x]) / mean
                cover[cell] += float(seen[b, y, x])
    return value / cover.clamp_min(1e-300), (cover / pixels).clamp(max=1)


@pytest.mark.parametrize("name", ["cutmix", "rmix", "mixup", "grafting", "none"])
@pytest.mark.parametrize(("size", "side", "momentum"), [((8, 8), 4, 0.5), ((7, 10), 3, 0.0)])
def test_a_refresh_is_what_plain_loops_make_of_it(name: str, size: tuple[int, int], side: int, momentum: float) -> None:
    """Credit by source, cells that were not seen, the old level, momentum, an image without a map."""
    images, _, inputs = batch_of(4, size)
    plan = get(name).plan(inputs, Streams([11]))
    gradient = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    bank = filled(side=side, momentum=momentum)
    others = torch.tensor([1, 2, 4, 6, 7, 9])
    before, kept = bank.state_dict()["maps"][IDS], bank.read(others)
    bank.refresh(IDS, plan, gradient)
    expected = literal_refresh(before, sources_seen(plan), gradient, momentum)
    # The rounding of a value half-way between two steps may fall either way.
    assert (bank.state_dict()["maps"][IDS].double() - expected).abs().max() <= 1
    assert torch.equal(bank.read(others), kept)


def test_cells_that_nobody_saw_keep_what_they_were() -> None:
    """Half of image 0 is covered by image 1, of which the left half is not seen at all."""
    plan = MixPlan(
        size=(4, 4),
        partners=torch.tensor([[1], [1]]),
        shares=torch.tensor([[0.0, 1.0], [0.0, 1.0]]).view(2, 1, 1, 2),
        label_shares=torch.full((2, 1), 0.5),
    )
    bank = SaliencyBank(2, 2, momentum=0.0)
    bank.update(torch.arange(2), torch.tensor([[[200.0, 100], [255, 255]], [[255, 255], [100, 200]]]))
    gradient = torch.ones(2, 3, 4, 4)
    gradient[0, :, :2, :2] = 3.0
    bank.refresh(torch.tensor([0, 1]), plan, gradient)
    first, second = bank.read(torch.arange(2)) * 255
    # 200 and 255 in the ratio 1 to 3 with the same sum; the peak of 341.25 becomes 255.
    assert torch.equal(first.round(), torch.tensor([[255.0, 75], [85, 191]]))
    # Image 1 shows all of itself (its own left half, its right half twice), flat but for scale.
    assert torch.equal(second[0].round(), second[1].round())


def test_what_moved_is_credited_to_where_it_was() -> None:
    """Transport shows a cell in another place; the gradient there belongs to the cell that it came from."""
    plan = MixPlan(
        size=(2, 2),
        partners=torch.tensor([[0]]),
        shares=torch.zeros(1, 1, 1, 1),
        label_shares=torch.zeros(1, 1),
        moves=torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]], dtype=torch.int32).view(1, 2, 2, 2),
    )
    bank = SaliencyBank(1, 2)
    bank.refresh(torch.tensor([0]), plan, torch.tensor([1.0, 2, 3, 4]).view(1, 1, 2, 2))
    assert torch.equal((bank.read(torch.tensor([0])) * 4).round(), torch.tensor([[[4.0, 3], [2, 1]]]))


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return the mean over maps [B, h, w] of Spearman's rank correlation of their cells."""
    ranks = [maps.flatten(1).argsort(1).argsort(1).float() for maps in (first, second)]
    one, two = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return float(((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))).mean())


@pytest.mark.parametrize("name", ["cutmix", "rmix"])
def test_a_training_teaches_the_bank_what_a_clean_pass_would_say(name: str) -> None:
    """On real digits, three epochs, no pass but the training's own; another example's map must say much less."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images[:512], dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target[:512])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    bank = SaliencyBank(512, 4)
    generator = torch.Generator().manual_seed(0)
    for step in range(3 * 16):
        if step % 16 == 0:
            order = torch.randperm(512, generator=generator)
        ids = order[step % 16 * 32 : (step % 16 + 1) * 32]
        batch = mix(
            images[ids], labels[ids], name, num_classes=10, generator=Streams([derive(1, step)]),
            saliency=bank.read(ids),
        )  # fmt: skip
        mixed = bank.watch(batch.images, ids, batch.plan)
        optimizer.zero_grad()
        functional.cross_entropy(model(mixed), batch.targets).backward()
        optimizer.step()
    assert bank.known == 1.0
    clean = grid.pool(input_gradient(model, images, labels), (4, 4))
    found = bank.read(torch.arange(512))
    own = rank_correlation(found, clean)
    assert own > 0.6
    assert own - rank_correlation(found.roll(1, 0), clean) > 0.1


def test_unmixed_rows_learn_their_own_map_in_full() -> None:
    """With method none and momentum 0 the bank holds the map itself, but for its scale and 255 steps."""
    images, _, inputs = batch_of(4, (8, 8))
    gradient = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    bank = SaliencyBank(10, 4, momentum=0.0)
    bank.refresh(IDS, get("none").plan(inputs, Streams([0])), gradient)
    maps = grid.pool(gradient.square().mean(1).sqrt(), (4, 4))
    assert torch.allclose(bank.read(IDS), maps / maps.amax((1, 2), keepdim=True), atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("scale", [1e-12, 65536.0])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    """A gradient scaler, a sum instead of a mean, accumulation."""
    images, _, inputs = batch_of(4, (8, 8))
    plan = get("cutmix").plan(inputs, Streams([0]))
    banks = [filled(), filled()]
    for bank, factor in zip(banks, (1.0, scale), strict=True):
        bank.refresh(IDS, plan, images * factor)
    difference = banks[0].state_dict()["maps"].int() - banks[1].state_dict()["maps"].int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_gradients_that_say_nothing_change_nothing(bad: float) -> None:
    """An overflow of mixed precision, and a saturated image."""
    images, _, inputs = batch_of(4, (8, 8))
    plan = get("none").plan(inputs, Streams([0]))
    bank, before = filled(), filled().read(torch.arange(10))
    gradient = images.clone()
    gradient[1:] = bad
    bank.refresh(IDS, plan, gradient)
    after = bank.read(torch.arange(10))
    changed = (after != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3]
    bank.refresh(IDS, plan, torch.full_like(gradient, bad))
    assert torch.equal(bank.read(torch.arange(10)), after)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_what_is_written_is_read_but_for_half_a_step(
    height: int, width: int, rows: int, columns: int, seed: int, sparse: bool
) -> None:
    """Quantised to 255 steps of the peak, averaged by cell."""
    maps = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 1e-4
    if sparse:
        maps = (maps - 5e-5).clamp_min(0) + 1e-9
    bank = SaliencyBank(7, (rows, columns))
    ids = torch.tensor([6, 0, 2])
    bank.update(ids, maps)
    cells = grid.pool(maps, (rows, columns))
    assert torch.allclose(bank.read(ids), cells / cells.amax((1, 2), keepdim=True), atol=0.5 / 255 + 1e-6)
    assert torch.equal(bank.read(torch.tensor([1, 3, 4, 5])), torch.ones(4, rows, columns))
    assert bank.known == pytest.approx(3 / 7)


def test_maps_of_no_use_leave_the_old_ones() -> None:
    """A provider may fail on single images."""
    bank, before = filled(), filled().read(IDS)
    maps = torch.zeros(4, 8, 8)
    maps[0, 0, 0], maps[1, 0, 0] = torch.nan, torch.inf
    maps[3] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    bank.update(IDS, maps)
    assert torch.equal(bank.read(IDS)[:3], before[:3])
    assert not torch.equal(bank.read(IDS)[3], before[3])


def test_it_takes_a_byte_for_each_cell() -> None:
    """ImageNet-1k at 8x8 must stay below 90 MB."""
    assert SaliencyBank(100, 8).nbytes == 6400
    assert SaliencyBank(100, (2, 3)).nbytes == 600
    assert 1_281_167 * SaliencyBank(1, 8).nbytes == 81_994_688


def test_mirrored_images_are_remembered_the_right_way_round() -> None:
    """A map made of the mirrored image must fit the image when it comes back unmirrored."""
    maps = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    mirrored = torch.tensor([True, False, True, False])
    shown = torch.where(mirrored.view(-1, 1, 1), maps.flip(2), maps)
    plain, told = SaliencyBank(10, 4), SaliencyBank(10, 4)
    plain.update(IDS, maps)
    told.update(IDS, shown, mirrored)
    assert torch.equal(plain.read(IDS), told.read(IDS))
    assert torch.equal(told.read(IDS, mirrored)[0], told.read(IDS)[0].flip(1))
    plan = get("none").plan(batch_of(4, (4, 4))[2], Streams([0]))
    plain.refresh(IDS, plan, maps.flip(1).unsqueeze(1))
    told.refresh(IDS, plan, shown.flip(1).unsqueeze(1), mirrored)
    assert torch.equal(plain.read(IDS), told.read(IDS))
    with pytest.raises(InputError, match=r"`mirrored` must be bool \[4\], one for each image, got torch.int64 \[4\]"):
        told.read(IDS, mirrored.long())


class Watching(nn.Module):
    """A network with buffers, dropout and a shared input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.stem(images)).relu().mean((2, 3))))
        return logits


def test_watching_changes_nothing_but_the_bank() -> None:
    """The same step with and without: gradients, buffers, flags and random numbers; and the images get no `.grad`."""
    images, labels, inputs = batch_of(4, (8, 8))
    plan = get("cutmix").plan(inputs, Streams([3]))
    torch.manual_seed(0)
    model = Watching()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[list[Tensor]] = []
    for watched in (False, True):
        model.load_state_dict(start)
        bank, mixed = filled(), apply(images, plan)
        shown = bank.watch(mixed, IDS, plan) if watched else mixed
        torch.manual_seed(1)
        model.zero_grad()
        loss = functional.cross_entropy(model(shown), labels)
        loss.backward()
        state = [torch.random.get_rng_state(), *model.state_dict().values()]
        seen.append(
            [loss.detach(), *state, *(part.grad.clone() for part in model.parameters() if part.grad is not None)]
        )
        assert model.training
        assert torch.equal(bank.read(IDS), filled().read(IDS)) is not watched
    assert all(map(torch.equal, *seen))
    assert shown is mixed
    assert shown.grad_fn is not None


def test_the_watched_gradient_is_the_one_that_a_leaf_would_get() -> None:
    """Same maps as by hand, under no_grad too, and with images that are part of a graph already."""
    images, labels, inputs = batch_of(4, (8, 8))
    plan = get("rmix").plan(inputs, Streams([3]))
    torch.manual_seed(0)
    model, by_hand = Watching().eval(), filled()
    leaf = apply(images, plan).requires_grad_()
    functional.cross_entropy(model(leaf), labels).backward()
    assert leaf.grad is not None
    by_hand.refresh(IDS, plan, leaf.grad)
    for kind in ("plain", "no_grad", "leaf", "graph"):
        bank, given = filled(), images.clone().requires_grad_(kind in ("leaf", "graph"))
        if kind == "leaf":
            shown = bank.watch(apply(images, plan).requires_grad_(), IDS, plan)
        else:
            with torch.set_grad_enabled(kind != "no_grad"):
                shown = bank.watch(apply(given, plan), IDS, plan)
        functional.cross_entropy(model(shown), labels).backward()
        assert torch.equal(bank.read(IDS), by_hand.read(IDS)), kind
        assert (given.grad is not None) is (kind == "graph")


def test_watched_images_may_be_changed_in_place_and_only_the_first_backward_counts() -> None:
    """Loops normalise in place, and some go back twice."""
    images, labels, inputs = batch_of(4, (8, 8))
    plan = get("cutmix").plan(inputs, Streams([3]))
    model, bank = Watching().eval(), filled(momentum=0.0)
    shown = bank.watch(apply(images, plan), IDS, plan)
    shown.sub_(0.5).div_(0.25)
    loss = functional.cross_entropy(model(shown), labels)
    loss.backward(retain_graph=True)
    once = bank.read(IDS)
    bank.update(IDS, torch.ones(4, 4, 4))
    loss.backward()
    assert not torch.equal(once, torch.ones(4, 4, 4))
    assert torch.equal(bank.read(IDS), torch.ones(4, 4, 4))


def test_a_loss_that_is_kept_does_not_keep_the_plan() -> None:
    """Loops that collect losses would otherwise collect masks too."""
    images, labels, inputs = batch_of(4, (8, 8))
    drawn = get("cutmix").plan(inputs, Streams([3]))
    shares = drawn.shares.clone()
    plan = MixPlan(size=drawn.size, partners=drawn.partners, shares=shares, label_shares=drawn.label_shares)
    gone = weakref.ref(shares)
    loss = functional.cross_entropy(Watching()(filled().watch(apply(images, plan), IDS, plan)), labels)
    del plan, drawn, shares
    assert gone() is not None
    loss.backward()
    gc.collect()
    assert gone() is None


def test_a_step_reads_nothing_back_and_costs_the_same_for_every_batch() -> None:
    """With `check=False`, as on a GPU."""
    counts = []
    for batch in (8, 32):
        _, _, inputs = batch_of(batch, (16, 16))
        plan = get("cutmix").plan(inputs, Streams([0]))
        bank, ids = SaliencyBank(100, check=False), torch.arange(batch)
        gradient = torch.ones(batch, 3, 16, 16)
        mirrored = ids % 2 == 0
        with OperationCounter() as counter:
            bank.read(ids, mirrored)
            bank.update(ids, gradient[:, 0], mirrored)
            bank.refresh(ids, plan, gradient, mirrored)
        assert counter.read_backs == []
        counts.append(counter.counts)
    assert counts[0] == counts[1]


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """And does not change when the training goes on."""
    bank = filled()
    state = bank.state_dict()
    save_tree(tmp_path / "bank", state)
    before = bank.read(torch.arange(10))
    bank.update(IDS, torch.rand(4, 4, 4))
    other = SaliencyBank(10, 4)
    other.load_state_dict(load_tree(tmp_path / "bank"))
    assert torch.equal(other.read(torch.arange(10)), before)
    other.load_state_dict(state)
    assert torch.equal(other.read(torch.arange(10)), before)
    other.update(IDS, torch.rand(4, 4, 4))
    assert torch.equal(state["maps"], load_tree(tmp_path / "bank")["maps"])


@pytest.mark.parametrize(
    ("bank", "change", "match"),
    [
        (SaliencyBank(11, 4), {}, "another bank: its `num_examples` is 10, here 11"),
        (SaliencyBank(10, (4, 5)), {}, "another bank: its `w` is 4, here 5"),
        (SaliencyBank(10, 4, momentum=0.9), {}, "another bank: its `momentum` is 0.5, here 0.9"),
        (SaliencyBank(10, 4), {"maps": torch.zeros(10, 4, 4)}, r"must be uint8 \[10, 4, 4\], got torch.float32"),
        (SaliencyBank(10, 4), {"maps": torch.zeros(9, 4, 4).byte()}, r"got torch.uint8 \[9, 4, 4\]"),
        (SaliencyBank(10, 4), {"maps": None}, "the bank's state is damaged"),
        (SaliencyBank(10, 4), {"identity": {}}, "the bank's state is damaged .*num_examples"),
    ],
)
def test_a_state_of_another_bank_is_refused(bank: SaliencyBank, change: dict[str, Any], match: str) -> None:
    """Maps of other examples would look like maps."""
    with pytest.raises(CheckpointError, match=match):
        bank.load_state_dict({**filled().state_dict(), **change})
    assert bank.known == 0.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0,), "`num_examples` must be a whole number of at least 1, got 0"),
        ((2.0,), "`num_examples` must be a whole number of at least 1, got 2.0"),
        ((5, 0), "`grid` must be a whole number of at least 1, got 0"),
        ((5, (4, 4, 4)), r"`grid` must be a number of cells per side or \(h, w\), got \(4, 4, 4\)"),
    ],
)
def test_bad_sizes_are_refused(arguments: Any, match: str) -> None:
    """Before any memory is taken."""
    with pytest.raises(InputError, match=match):
        SaliencyBank(*arguments)


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan"), True])
def test_a_momentum_that_learns_nothing_is_refused(momentum: float) -> None:
    """1 would keep every map as it is."""
    with pytest.raises(InputError, match=r"`momentum` must be in \[0, 1\)"):
        SaliencyBank(5, momentum=momentum)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        (torch.tensor([3, 0, 8, 10]), r"`ids` must be in \[0, 10\), .* got values from 0 to 10"),
        (torch.tensor([3, 0, -1, 5]), r"`ids` must be in \[0, 10\), .* got values from -1 to 5"),
        (torch.tensor([3, 0, 8, 3]), "`ids` name example 3 more than once"),
        (torch.tensor([3.0, 0, 8, 5]), r"`ids` must be a tensor of whole numbers \[B\], .* got torch.float32 \[4\]"),
        (torch.tensor([True, False]), r"`ids` must be a tensor of whole numbers \[B\], .* got torch.bool"),
        (torch.tensor([[3, 0, 8, 5]]), r"`ids` must be a tensor of whole numbers \[B\], .* \[1, 4\]"),
        ([3, 0, 8, 5], r"`ids` must be a tensor of whole numbers \[B\], .* got list"),
    ],
)
def test_unknown_and_repeated_ids_are_refused_everywhere(ids: Any, match: str) -> None:
    """The bank would give, or change, the maps of other images."""
    bank, plan = filled(), get("none").plan(batch_of(4, (4, 4))[2], Streams([0]))
    before = bank.state_dict()["maps"]
    with pytest.raises(InputError, match=match):
        bank.read(ids)
    with pytest.raises(InputError, match=match):
        bank.update(ids, torch.ones(4, 4, 4))
    with pytest.raises(InputError, match=match):
        bank.refresh(ids, plan, torch.ones(4, 3, 4, 4))
    assert torch.equal(bank.state_dict()["maps"], before)


def test_maps_and_gradients_of_another_batch_are_refused() -> None:
    """The last batch of an epoch is often a smaller one."""
    bank, plan = filled(), get("none").plan(batch_of(4, (4, 4))[2], Streams([0]))
    with pytest.raises(InputError, match=r"`maps` must be floating point \[4, h, w\].* got torch.float32 \[3, 4, 4\]"):
        bank.update(IDS, torch.ones(3, 4, 4))
    with pytest.raises(InputError, match="got torch.uint8"):
        bank.update(IDS, torch.ones(4, 4, 4).byte())
    with pytest.raises(InputError, match="`plan` mixes 4 images, there are 3 ids"):
        bank.refresh(IDS[:3], plan, torch.ones(3, 3, 4, 4))
    for shape in ((3, 3, 4, 4), (4, 3, 4, 5), (4, 4, 4)):
        with pytest.raises(InputError, match=r"`gradient` must be \[4, C, 4, 4\]"):
            bank.refresh(IDS, plan, torch.ones(shape))


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    """Ids come from a loader on the CPU; reading, crediting and writing run ahead of the device."""
    images, labels, inputs = batch_of(4, (8, 8))
    bank, model = filled().to("cuda"), Watching().cuda().eval()
    images, labels = images.cuda(), labels.cuda()
    plan = get("cutmix").plan(inputs, Streams([3])).to("cuda")
    reference = filled()
    leaf = apply(images, plan).requires_grad_()
    functional.cross_entropy(model(leaf), labels).backward()
    assert leaf.grad is not None
    reference.refresh(IDS, plan.to("cpu"), leaf.grad.cpu())
    torch.cuda.set_sync_debug_mode("error")
    try:
        bank.read(IDS)
        shown = bank.watch(apply(images, plan), IDS, plan)
        functional.cross_entropy(model(shown), labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = bank.state_dict()["maps"].cpu().int() - reference.state_dict()["maps"].int()
    assert difference.abs().max() <= 1
