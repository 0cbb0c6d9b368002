"""rlmix.compat.timm, beside the timm that is installed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlmix.compat.timm import Mixup
from rlmix.errors import InputError, MethodError
from rlmix.plan import MixPlan

CLASSES = 12
BOTH = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "mixup": {"mixup_alpha": 0.8},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    "both": BOTH,
    "minmax": {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8)},
    "minmax and mixup": {"mixup_alpha": 0.8, "cutmix_minmax": (0.2, 0.8)},
    "uncorrected": {**BOTH, "correct_lam": False},
    "half the time": {**BOTH, "prob": 0.5},
}
MODES = ("batch", "pair", "elem")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(batch: int, size: tuple[int, int] = (8, 8)) -> Tensor:
    """Return images filled with their own number."""
    return torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1).expand(batch, 3, *size).contiguous()


def test_the_arguments_and_their_defaults_are_timms() -> None:
    """A training script changes one import, nothing else."""
    theirs = inspect.signature(pytest.importorskip("timm", reason="timm is not installed").data.Mixup).parameters
    ours = dict(inspect.signature(Mixup).parameters)
    assert ours.pop("generator").kind is inspect.Parameter.KEYWORD_ONLY
    # Versions of timm before 1.0.31 lack the last one.
    shared = [name for name in ours if name in theirs or name != "multi_label"]
    assert shared == list(theirs)
    assert {name: ours[name].default for name in shared} == {name: given.default for name, given in theirs.items()}
    assert all(ours[name].kind == theirs[name].kind for name in shared)


def test_the_attributes_are_timms() -> None:
    """timm's loader and training script read and set them."""
    theirs = pytest.importorskip("timm", reason="timm is not installed").data.Mixup(num_classes=CLASSES)
    ours = vars(Mixup(num_classes=CLASSES))
    assert {name: ours[name] for name in vars(theirs)} == vars(theirs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_shapes_and_dtypes_are_timms(name: str, mode: str) -> None:
    """Images keep their dtype, targets are float32, for single and for half precision."""
    mixup = pytest.importorskip("timm", reason="timm is not installed").data.Mixup
    labels = torch.arange(6)
    for dtype in (torch.float32, torch.float16):
        images = torch.rand(6, 3, 9, 7, generator=generator()).to(dtype)
        pairs = [
            kind(**ARGUMENTS[name], mode=mode, num_classes=CLASSES)(images.clone(), labels) for kind in (mixup, Mixup)
        ]
        for one, two in zip(*pairs, strict=True):
            assert one.shape == two.shape
            assert one.dtype == two.dtype


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_equal_draws_give_timms_images_and_targets(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn here is given to timm in place of its own draws: pixels and label rows must agree then."""
    module = pytest.importorskip("timm.data.mixup", reason="timm is not installed")
    images = torch.rand(6, 3, 9, 7, generator=generator(1))
    labels = torch.tensor([3, 0, 3, 11, 5, 7])
    count = {"batch": 1, "pair": 3, "elem": 6}[mode]
    for seed in range(6):
        options = {**ARGUMENTS[name], "mode": mode, "num_classes": CLASSES}
        mixed, targets = Mixup(**options, generator=generator(seed))(images, labels)
        plan = Mixup(**options, generator=generator(seed)).draw(images)
        lam = 1.0 - plan.label_shares[:count, 0]
        boxed = (plan.shares[:count].flatten() == 1.0) & (lam < 1.0)
        boxes = iter([box_of(plan, row) for row in boxed.nonzero().flatten().tolist()])
        for function in ("rand_bbox", "rand_bbox_minmax"):
            monkeypatch.setattr(module, function, lambda *_, boxes=boxes, **__: next(boxes))
        theirs = module.Mixup(**options)
        each, whole = (lam.numpy().copy(), boxed.numpy()), (float(lam[0]), bool(boxed[0]))
        monkeypatch.setattr(theirs, "_params_per_elem", lambda _, each=each: each)
        monkeypatch.setattr(theirs, "_params_per_batch", lambda whole=whole: whole)
        expected, rows = theirs(images.clone(), labels)
        torch.testing.assert_close(targets, rows, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(mixed, expected, rtol=0.0, atol=1e-6)


def box_of(plan: MixPlan, row: int) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a row's box."""
    assert plan.window is not None
    down, across = (side[row].nonzero().flatten().tolist() for side in plan.window)
    return (down[0], down[-1] + 1, across[0], across[-1] + 1) if down and across else (0, 0, 0, 0)


@pytest.mark.parametrize("length", [7, 8, 32, 33])
def test_boxes_are_timms_and_lose_no_pixel_of_an_odd_side(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`side // 2` both ways made boxes of an odd side smaller by a pixel (fixed in timm 1.0.31)."""
    mixup = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0)
    share, place = torch.rand(2, 400, generator=generator()).unbind(0)
    first, last = mixup._span(share, place, place, length)
    side, centre = (share.sqrt() * length).long(), (place * length).long()
    inside = (centre - side // 2 >= 0) & (centre + (side + 1) // 2 <= length)
    assert inside.any()
    assert torch.equal((last - first)[inside], side[inside])
    module = pytest.importorskip("timm.data.mixup", reason="timm is not installed")
    for row in range(400):
        monkeypatch.setattr(module.np.random, "randint", lambda *_, row=row, **__: int(centre[row]))
        top, bottom, _, _ = module.rand_bbox((3, length, length), np.float32(1.0) - share[row].numpy())
        assert (int(first[row]), int(last[row])) == (int(top), int(bottom))


def test_boxes_of_cutmix_minmax_reach_every_edge_and_their_own_bounds() -> None:
    """timm before 1.0.31 never put a box against the last row or column."""
    mixup = Mixup(mixup_alpha=0.0, cutmix_minmax=(0.25, 0.75), mode="elem", generator=generator())
    plan = mixup.draw(torch.zeros(4000, 1, 8, 8))
    assert plan.window is not None
    for side in plan.window:
        sides = side.sum(1)
        assert (int(sides.min()), int(sides.max())) == (2, 5)
        assert bool(side[:, 0].any())
        assert bool(side[:, -1].any())
    assert torch.allclose(plan.lam, 1.0 - plan.window[0].mean(1) * plan.window[1].mean(1), atol=1e-6)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "minmax", "half the time"])
def test_own_weights_are_distributed_as_timms(name: str) -> None:
    """Two samples of 4000 own weights; equal distributions would be refused once in a million such tests."""
    mixup = pytest.importorskip("timm", reason="timm is not installed").data.Mixup
    batch = 4000
    options = {**ARGUMENTS[name], "mode": "elem", "label_smoothing": 0.0, "num_classes": 2}
    # The first half of the batch has class 0 and is paired with the second: the own weight stands in its column.
    labels = (torch.arange(batch) >= batch // 2).long()
    own = labels.unsqueeze(1)
    np.random.seed(0)  # noqa: NPY002  (timm's generator)
    samples = [
        kind(torch.zeros(batch, 1, 16, 16), labels)[1].gather(1, own).flatten().double()
        for kind in (Mixup(**options, generator=generator()), mixup(**options))
    ]
    levels = torch.cat(samples).sort().values
    shares = [torch.searchsorted(sample.sort().values, levels + 1e-6) / batch for sample in samples]
    distance = float((shares[0] - shares[1]).abs().max())
    # Kolmogorov and Smirnov's bound for two samples: 2 exp(-2 n m / (n + m) d**2) = 1e-6.
    assert distance < math.sqrt(-math.log(1e-6 / 2) / batch)


@pytest.mark.parametrize("mode", MODES)
def test_probabilities_are_met(mode: str) -> None:
    """Binomial counts of 800 draws or more lie within 5 standard deviations but for about 1e-6 each."""
    images = numbered(2 if mode == "batch" else 8)
    source = generator(5)
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.6, switch_prob=0.25, mode=mode, generator=source)
    draws = {"batch": 1, "pair": 4, "elem": 8}[mode]
    shares = torch.cat([mixup.draw(images).shares[:draws].flatten() for _ in range(800)])
    for count, share in ((int((shares > 0).sum()), 0.6), (int((shares == 1).sum()), 0.15)):
        assert abs(count - len(shares) * share) < 5 * math.sqrt(len(shares) * share * (1 - share))


@pytest.mark.parametrize("mode", MODES)
def test_labels_follow_the_pixels(mode: str) -> None:
    """Images are filled with their own number; rows have two labels at most."""
    mixup = Mixup(
        mixup_alpha=0.0, cutmix_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=6, generator=generator()
    )
    images = numbered(6, (9, 7))
    for _ in range(10):
        mixed, targets = mixup(images, torch.arange(6))
        for source in range(6):
            assert torch.allclose(targets[:, source], (mixed == source).float().mean((1, 2, 3)), atol=1e-6)
        assert torch.equal(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_the_middle_of_an_odd_batch_stays_as_it_is(mode: str, batch: int) -> None:
    """timm asserts an even batch, which the last one of an epoch need not be."""
    images = torch.rand(batch, 3, 8, 8, generator=generator())
    mixup = Mixup(**BOTH, mode=mode, num_classes=batch, label_smoothing=0.0, generator=generator())
    mixed, targets = mixup(images, torch.arange(batch))
    assert torch.allclose(mixed[batch // 2], images[batch // 2], atol=1e-6)
    assert torch.equal(targets[batch // 2], torch.eye(batch)[batch // 2])


@pytest.mark.parametrize("mode", MODES)
def test_images_are_not_written_and_gradients_flow(mode: str) -> None:
    """timm mixes in place, which destroys the caller's batch and is an error for a leaf."""
    images = torch.rand(4, 3, 8, 8, generator=generator()).requires_grad_()
    before = images.detach().clone()
    mixed, _ = Mixup(**BOTH, mode=mode, generator=generator())(images, torch.arange(4))
    mixed.sum().backward()
    assert torch.equal(images.detach(), before)
    assert images.grad is not None


def test_torchs_seed_alone_repeats_a_training() -> None:
    """timm's numbers come from NumPy's global generator, which many scripts never seed."""
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)

    def run() -> list[Tensor]:
        torch.manual_seed(7)
        mixup = Mixup(**BOTH, mode="elem")
        return [tensor for _ in range(3) for tensor in mixup(images, labels)]

    first = run()
    np.random.random(5)  # noqa: NPY002  (it must not matter)
    assert all(map(torch.equal, first, run()))
    assert not torch.equal(first[0], first[2])


def test_a_generator_leaves_the_global_state_alone() -> None:
    """Mixing must not change what the rest of a training draws."""
    before = torch.get_rng_state()
    Mixup(generator=generator())(torch.rand(4, 3, 8, 8, generator=generator()), torch.arange(4))
    assert torch.equal(before, torch.get_rng_state())


def test_switched_off_it_only_makes_targets() -> None:
    """`mixup_off_epoch` of timm's training script sets this attribute."""
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    ours = Mixup(num_classes=CLASSES)
    ours.mixup_enabled = False
    mixed, targets = ours(images, labels)
    assert torch.equal(mixed, images)
    assert torch.allclose(targets, torch.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES)


def test_multi_label_targets_are_smoothed_towards_one_half_and_mixed() -> None:
    """Side by side where the installed timm has the argument."""
    dense = torch.rand(6, CLASSES, generator=generator()).round()
    images = numbered(6)
    options = {"mixup_alpha": 0.8, "num_classes": CLASSES, "multi_label": True}
    plan = Mixup(**options, generator=generator(3)).draw(images)
    _, targets = Mixup(**options, generator=generator(3))(images, dense)
    smooth, lam = 0.9 * dense + 0.05, 1.0 - plan.label_shares
    assert torch.allclose(targets, smooth * lam + smooth.flip(0) * (1.0 - lam), atol=1e-6)
    module = pytest.importorskip("timm.data.mixup", reason="timm is not installed")
    if "multi_label" not in inspect.signature(module.mixup_target).parameters:
        pytest.skip("the installed timm mixes no dense labels")
    assert torch.allclose(targets, module.mixup_target(dense, CLASSES, lam, 0.1, True), atol=1e-6)


def test_what_timm_lets_pass_or_asserts_is_an_error_with_what_to_do() -> None:
    """An assertion without a text, a batch of whole numbers cut off, or an unknown mode taken for "batch"."""
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    with pytest.raises(MethodError, match="One of mixup_alpha > 0., cutmix_alpha > 0., cutmix_minmax not None"):
        Mixup(mixup_alpha=0.0)
    with pytest.raises(MethodError, match="`mode` must be one of 'batch', 'pair', 'elem', got 'half'"):
        Mixup(mode="half")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"`cutmix_minmax` must be \(least, most\)"):
        Mixup(cutmix_minmax=(0.8, 0.2))
    for name in ("prob", "switch_prob", "label_smoothing"):
        with pytest.raises(MethodError, match=f"`{name}` must be a number in"):
            Mixup(**{name: 1.5})
    with pytest.raises(MethodError, match="`mixup_alpha` must be a number in"):
        Mixup(mixup_alpha=-1.0)
    with pytest.raises(InputError, match=r"must be floating point, got torch.uint8. Use images.float\(\) / 255"):
        Mixup()((images * 255).byte(), labels)
    with pytest.raises(ValueError, match="Multi-label mixup expects dense targets shaped .batch, num_classes."):
        Mixup(multi_label=True)(images, labels)
    with pytest.raises(InputError, match=r"`labels` must be in \[0, 3\)"):
        Mixup(num_classes=3)(images, labels)
