"""Mirroring and shifting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.training.augment import augmented, mirrored


def pictures(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) + 0.1


def test_every_image_is_one_of_its_shifts_or_their_mirrors() -> None:
    """Against a literal search: each result equals a crop of the padded image, mirrored or not, each crop possible."""
    images = pictures(400, 16, 8)
    padded = functional.pad(images, (1, 1, 2, 2))
    seen = set()
    for image, whole in zip(augmented(images, 7), padded, strict=True):
        crops = {(top, left): whole[:, top : top + 16, left : left + 8] for top in range(5) for left in range(3)}
        cases = {(*place, flip): crop.flip(-1) if flip else crop for place, crop in crops.items() for flip in (0, 1)}
        found = [case for case, expected in cases.items() if torch.equal(image, expected)]
        assert len(found) == 1
        seen.update(found)
    # 30 cases, 400 images: one is missing with probability below 30 * exp(-400 / 30) = 5e-5, and the key is fixed.
    assert len(seen) == 30


def test_it_can_be_told_which_images_were_mirrored() -> None:
    """Maps that are kept for the images have to be turned with them."""
    images = pictures(40, 4, 4)
    turned = mirrored(40, 7, torch.device("cpu"))
    assert turned.any()
    assert not turned.all()
    assert torch.equal(augmented(images, 7), torch.where(turned.view(-1, 1, 1, 1), images.flip(3), images))


def test_the_result_is_a_function_of_the_key() -> None:
    """A resumed step must see what it would have seen; inputs stay as they are, the global state too."""
    images = pictures(8, 16, 16)
    copy, state = images.clone(), torch.get_rng_state()
    first, again, other = augmented(images, 1), augmented(images, 1), augmented(images, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.is_contiguous()


def test_tiny_images_are_only_mirrored() -> None:
    """Below eight pixels an eighth is nothing."""
    images = pictures(20, 4, 4)
    result = augmented(images, 0)
    for image, own in zip(result, images, strict=True):
        assert torch.equal(image, own) or torch.equal(image, own.flip(-1))
