"""rlmix.saliency.Detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rlmix import mix
from rlmix.errors import InputError
from rlmix.saliency import Detector, fine_grained, spectral_residual

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_it_gives_the_map_of_the_picture_behind_a_normalised_image(crops: Callable[..., Tensor]) -> None:
    """The one way in which a training's own images may reach a detector."""
    pictures = crops(4, (32, 32))
    images = (pictures.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    labels = torch.arange(4)
    assert torch.equal(Detector(mean=MEAN, std=STD)(images, labels), fine_grained(pictures))
    assert torch.equal(Detector(spectral_residual, MEAN, STD)(images), spectral_residual(pictures))
    bgr = Detector(partial(fine_grained, order="bgr"), MEAN[::-1], STD[::-1])
    assert torch.equal(bgr(images.flip(1), labels), fine_grained(pictures))


def test_it_refuses_images_that_its_normalisation_does_not_fit() -> None:
    """Left out, `mean` and `std` would make another picture."""
    with pytest.raises(InputError, match="Give the `mean` and `std`"):
        Detector()(torch.full((1, 3, 4, 4), -2.0), torch.zeros(1, dtype=torch.int64))


def test_it_cannot_be_changed_and_serves_grey_images() -> None:
    """A saliency source is part of a configuration."""
    detector = Detector()
    with pytest.raises(dataclasses.FrozenInstanceError):
        detector.mean = 0.5  # type: ignore[misc]
    assert detector(torch.rand(2, 1, 8, 8)).shape == (2, 8, 8)


def test_its_maps_place_the_boxes_of_saliencymix(crops: Callable[..., Tensor]) -> None:
    """From the picture to the mixed batch."""
    images = crops(6, (32, 32)).float() / 255
    labels = torch.arange(6)
    generator = torch.Generator().manual_seed(0)
    batch = mix(images, labels, "saliencymix", num_classes=6, generator=generator, saliency=Detector()(images, labels))
    assert bool(torch.isfinite(batch.images).all())
    assert not torch.equal(batch.images, images)
