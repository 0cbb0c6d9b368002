"""rlmix.saliency.to_uint8."""

from __future__ import annotations

import pytest
import torch

from rlmix.errors import InputError
from rlmix.saliency import to_uint8

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as a training has them."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_level_comes_back(dtype: torch.dtype) -> None:
    """Truncation instead of rounding would lose a level at half of them; bfloat16 keeps no more than 8 bits."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    back = to_uint8(normalised(levels).to(dtype), MEAN, STD)
    assert back.dtype == torch.uint8
    difference = (back.int() - levels.int()).abs()
    assert int(difference.max()) <= (1 if dtype == torch.bfloat16 else 0)


def test_one_number_serves_all_channels_and_none_means_zero_to_one() -> None:
    """Grey images have one channel, and many data sets one mean."""
    images = torch.randint(0, 256, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(to_uint8(images.float() / 255), images)
    assert torch.equal(to_uint8((images.float() / 255 - 0.5) / 0.25, 0.5, (0.25,)), images)


def test_images_that_were_normalised_otherwise_are_refused() -> None:
    """Clamping them in silence would give the detector a cut-off picture."""
    pictures = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\] after `mean` and `std` are undone, got values from -"):
        to_uint8(normalised(pictures))
    with pytest.raises(InputError, match="for images from 0 to 255 use images.to"):
        to_uint8(pictures.float())
    broken = pictures.float() / 255
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="got values from nan"):
        to_uint8(broken)
    assert int(to_uint8(pictures.float(), check=False).min()) >= 0


def test_arguments_of_a_wrong_form_are_refused() -> None:
    """A mean of two channels would otherwise fail far from here."""
    with pytest.raises(InputError, match="`mean` must be one number or one for each of the 3 channels, got 2"):
        to_uint8(torch.zeros(1, 3, 2, 2), mean=(0.5, 0.5))
    with pytest.raises(InputError, match="must be floating point .*, got torch.uint8"):
        to_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"got torch.float32 \[3, 2, 2\]"):
        to_uint8(torch.zeros(3, 2, 2))


def test_the_images_are_not_written() -> None:
    """The same batch is trained on afterwards."""
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    to_uint8(images)
    assert torch.equal(images, before)
