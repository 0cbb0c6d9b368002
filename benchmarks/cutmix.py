"""The whole CutMix call with a box for each image, beside timm and kornia."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

import rlmix
from benchmarks.timing import Candidate, Case, Goal

SIZES = ((128, 32, 100, 200), (64, 224, 1000, 20))
RLMIX, UNCHECKED = 'rlmix.mix(x, y, "cutmix")', 'rlmix.mix(x, y, "cutmix", check=False)'
ELEMENT, BATCH, KORNIA = "timm elem", "timm batch", "kornia RandomCutMixV2"

Call = Callable[[Tensor], tuple[Tensor, Tensor]]
NOTES = (
    "A call draws boxes and partners, mixes and gives targets. Each candidate gets a fresh copy of the images, made "
    "outside the timed part: timm mixes in place (and inside its elem mode copies the batch once more), the others do "
    "not write their input and return a new batch. rlmix also checks the labels' range and that the images are finite, "
    "which no other does; the line with check=False is the same work without it. "
    "timm pairs by reversing the batch, rlmix and kornia by a random permutation. kornia returns both labels and the "
    "weight instead of soft targets. timm's batch mode draws one box for all images, which is another and cheaper job."
)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each size."""
    return [partial(_case, *size) for size in SIZES]


def calls(batch: int, classes: int) -> dict[str, Call]:
    """Return the candidates as functions from images to (images, targets), seeded anew; label b is b % classes."""
    from kornia.augmentation import RandomCutMixV2
    from timm.data.mixup import Mixup

    labels = torch.arange(batch) % classes
    generator = torch.Generator().manual_seed(2)
    # These two draw from the global generators and offer no other.
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    options = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "label_smoothing": 0.0, "num_classes": classes}
    element, whole = Mixup(mode="elem", **options), Mixup(mode="batch", **options)
    kornia = RandomCutMixV2(data_keys=["input", "class"], use_correct_lambda=True)

    def ours(images: Tensor, check: bool | None = None) -> tuple[Tensor, Tensor]:
        mixed = rlmix.mix(images, labels, "cutmix", num_classes=classes, generator=generator, check=check)
        return mixed.images, mixed.targets

    return {
        ELEMENT: lambda images: element(images, labels),
        RLMIX: ours,
        UNCHECKED: partial(ours, check=False),
        KORNIA: lambda images: tuple(kornia(images, labels)),
        BATCH: lambda images: whole(images, labels),
    }


def check_labels_follow_pixels(call: Call, batch: int, side: int, own_weight: Callable[[Tensor], Tensor]) -> None:
    """Mix images that are filled with their own number: the own label's weight must be the share of own pixels.

    Args:
        call: what is checked.
        batch: number of images.
        side: of an image.
        own_weight: reads the weight of each image's own label out of the targets.
    """
    number = torch.arange(batch, dtype=torch.float32).view(-1, 1, 1, 1)
    mixed, targets = call(number.expand(batch, 3, side, side).clone())
    counted = (mixed == number).float().mean((1, 2, 3))
    apart = (own_weight(targets) - counted).abs()
    # An image that was paired with itself is whole, whatever weight stands in the target.
    assert bool(((apart < 1e-5) | (counted == 1)).all()), f"labels do not follow the pixels: {apart.max():.3g}"
    assert bool((counted < 1).any()), "nothing was mixed"


def _case(batch: int, side: int, classes: int, rounds: int) -> Case:
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))

    def check() -> None:
        # With as many classes as images each label tells its image.
        own = torch.arange(batch)
        for name, function in calls(batch, batch).items():
            own_weight = (lambda targets: targets[0, :, 2]) if name == KORNIA else (lambda targets: targets[own, own])
            check_labels_follow_pixels(function, batch, side, own_weight)

    return Case(
        group="cutmix",
        name=f"CutMix with a box for each image, {batch}x3x{side}x{side}, {classes} classes",
        candidates=[
            Candidate(name=name, run=function, prepare=images.clone) for name, function in calls(batch, classes).items()
        ],
        rounds=rounds,
        goals=(
            Goal(candidate=RLMIX, baseline=ELEMENT, limit=1.0, text="faster than timm's elem mode"),
            Goal(candidate=RLMIX, baseline=KORNIA, limit=1.0, text="faster than kornia"),
        ),
        check=check,
        notes=NOTES,
    )
