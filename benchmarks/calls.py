"""The whole mixup and CutMix calls, drawn for each image, beside timm, torchvision, kornia and PyPI's `mixup`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import rlmix
from benchmarks.timing import TENSOR_CODE, Candidate, Case, Goal, tensor_code

SIZES = ((128, 32, 100, 200), (64, 224, 1000, 20))
METHODS = ("mixup", "cutmix")
RLMIX, UNCHECKED, UNAIDED = "rlmix.mix", "rlmix.mix, check=False", f"rlmix.mix, {TENSOR_CODE}"
ELEMENT, BATCH, TORCHVISION, KORNIA, PYPI = "timm elem", "timm batch", "torchvision v2", "kornia", "PyPI mixup"

Call = Callable[[Tensor], tuple[Tensor, Tensor]]
NOTES = (
    "A call draws weights or boxes and partners, mixes and gives targets. Each candidate gets a fresh copy of the "
    "images, made outside the timed part: timm mixes in place (and inside its elem mode copies the batch once more), "
    "the others do not write their input and return a new batch. rlmix also checks the labels' range and that the "
    "images are finite, which no other does; the line with check=False is the same work without it, that without numba "
    "the same on a machine where the extra `jit` is not installed. rlmix, timm's elem "
    "mode and kornia draw for each image; torchvision, PyPI's mixup and timm's batch mode draw once for the batch, "
    "which is another and cheaper job. timm pairs by reversing the batch and torchvision by rolling it, the others by "
    "a random permutation. kornia returns both labels and the weight instead of soft targets; PyPI's mixup takes "
    "one-hot labels, made outside the timed part."
)


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each method and size."""
    return [partial(_case, method, *size) for method in METHODS for size in SIZES]


def calls(method: str, batch: int, classes: int) -> dict[str, Call]:
    """Return the candidates as functions from images to (images, targets), seeded anew; label b is b % classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mixup as pypi
        from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
        from timm.data.mixup import Mixup
        from torchvision.transforms import v2

    labels = torch.arange(batch) % classes
    one_hot = F.one_hot(labels, classes).float()
    generator = torch.Generator().manual_seed(2)
    # These draw from the global generators and offer no other.
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    cut = method == "cutmix"
    alphas = {"mixup_alpha": 0.0 if cut else 1.0, "cutmix_alpha": 1.0 if cut else 0.0}
    options = {**alphas, "label_smoothing": 0.0, "num_classes": classes}
    element, whole = Mixup(mode="elem", **options), Mixup(mode="batch", **options)
    keys = ["input", "class"]
    kornia = RandomCutMixV2(data_keys=keys, use_correct_lambda=True) if cut else RandomMixUpV2(data_keys=keys)
    torchvision = (v2.CutMix if cut else v2.MixUp)(num_classes=classes)
    package = (pypi.CutMix if cut else pypi.VanillaMixUp)(alpha=1.0)

    def ours(images: Tensor, check: bool | None = None) -> tuple[Tensor, Tensor]:
        mixed = rlmix.mix(images, labels, method, num_classes=classes, generator=generator, check=check)
        return mixed.images, mixed.targets

    return {
        ELEMENT: lambda images: element(images, labels),
        RLMIX: ours,
        UNCHECKED: partial(ours, check=False),
        UNAIDED: tensor_code(ours),
        TORCHVISION: lambda images: torchvision(images, labels),
        KORNIA: lambda images: tuple(kornia(images, labels)),
        PYPI: lambda images: package(images, one_hot),
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


def check_labels_follow_values(call: Call, batch: int, side: int) -> None:
    """Mix images that are filled with their own number: the targets' mean number must be that of the pixels."""
    number = torch.arange(batch, dtype=torch.float32)
    mixed, targets = call(number.view(-1, 1, 1, 1).expand(batch, 3, side, side).clone())
    torch.testing.assert_close(targets @ number, mixed.mean((1, 2, 3)), rtol=1e-4, atol=1e-2)


def _check(method: str, batch: int, side: int) -> None:
    # With as many classes as images each label tells its image.
    own = torch.arange(batch)
    for name, function in calls(method, batch, batch).items():
        if method == "cutmix":
            own_weight = (lambda targets: targets[0, :, 2]) if name == KORNIA else (lambda targets: targets[own, own])
            check_labels_follow_pixels(function, batch, side, own_weight)
        elif name != KORNIA:
            check_labels_follow_values(function, batch, side)


def _case(method: str, batch: int, side: int, classes: int, rounds: int) -> Case:
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    others = (ELEMENT, TORCHVISION, KORNIA, PYPI)
    return Case(
        group="calls",
        name=f"{method} drawn for each image, {batch}x3x{side}x{side}, {classes} classes",
        candidates=[
            Candidate(name=name, run=function, prepare=images.clone)
            for name, function in calls(method, batch, classes).items()
        ],
        rounds=rounds,
        goals=[Goal(candidate=RLMIX, baseline=name, limit=1.0, text=f"faster than {name}") for name in others],
        check=partial(_check, method, batch, side),
        notes=NOTES,
    )
