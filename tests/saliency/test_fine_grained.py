"""rlmix.saliency.fine_grained, against OpenCV's detector."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rlmix.errors import InputError
from rlmix.saliency import _fine_grained as module
from rlmix.saliency import fine_grained
from rlmix.testing.methods import OperationCounter


def opencv(images: Tensor) -> Tensor:
    """Return what OpenCV's detector gives, image by image, of RGB images uint8 [B, 3, H, W]."""
    detector = cv2.saliency.StaticSaliencyFineGrained.create()
    maps = []
    for image in images:
        found, saliency = detector.computeSaliency(np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy()))
        assert found
        maps.append(torch.from_numpy(saliency))
    return torch.stack(maps)


def noise(count: int, size: tuple[int, int], seed: int = 0, channels: int = 3) -> Tensor:
    """Return images without any likeness between neighbouring pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "count"), [((32, 32), 200), ((64, 64), 60), ((20, 50), 30), ((130, 40), 10), ((224, 224), 8)]
)
def test_natural_pictures_get_the_bits_of_opencv(
    crops: Callable[..., Tensor], size: tuple[int, int], count: int
) -> None:
    """Every rounding step counts: one level lost early moves whole maps."""
    images = crops(count, size, seed=size[0])
    maps = fine_grained(images)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, opencv(images))
    assert torch.equal(maps.amax((1, 2)) > 0, torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9), (3, 5), (11, 12), (13, 12), (24, 25), (28, 57), (113, 29), (200, 200)],
)
def test_noise_gets_the_bits_of_opencv_at_every_odd_size(size: tuple[int, int]) -> None:
    """Sides around the six radii decide which windows cover the whole image; a side of 1 mirrors onto itself."""
    images = noise(6, size, seed=size[1])
    assert torch.equal(fine_grained(images), opencv(images))


def test_flat_and_extreme_images_get_the_bits_of_opencv() -> None:
    """Without contrast all is zero; a single bright pixel, a step and stripes reach the ends of the range."""
    images = torch.zeros(7, 3, 32, 32, dtype=torch.uint8)
    images[1], images[2] = 255, 93
    images[3, :, 17, 4] = 255
    images[4, :, :, 16:] = 255
    images[5, :, 0::4] = images[5, :, 1::4] = 255
    images[6, 2, 9:12, 20:] = 200
    maps = fine_grained(images)
    assert torch.equal(maps, opencv(images))
    assert torch.equal(maps[:3], torch.zeros(3, 32, 32))
    assert bool((maps[3:].amax((1, 2)) > 0.99).all())


def test_a_large_picture_differs_from_opencv_in_few_pixels(crops: Callable[..., Tensor]) -> None:
    """Beyond 2**24 running sums in float32 are rounded, by both in their own order."""
    images = crops(2, (400, 600))
    difference = (fine_grained(images) - opencv(images)).abs()
    assert float((difference > 0).float().mean()) < 0.005
    assert float(difference.max()) < 3 / 255


def test_the_order_of_the_channels_is_said_or_rgb(crops: Callable[..., Tensor]) -> None:
    """OpenCV takes channels for BGR; RGB images handed over as they are get red and blue exchanged."""
    images = crops(8, (32, 32))
    assert torch.equal(fine_grained(images.flip(1), order="bgr"), fine_grained(images))
    assert not torch.equal(fine_grained(images, order="bgr"), fine_grained(images))
    with pytest.raises(InputError, match="`order` must be 'rgb' or 'bgr', got 'gbr'"):
        fine_grained(images, order="gbr")  # type: ignore[arg-type]


def test_grey_images_are_taken_as_they_are() -> None:
    """OpenCV computes no lightness of a single channel."""
    images = noise(5, (32, 32), channels=1)
    detector = cv2.saliency.StaticSaliencyFineGrained.create()
    expected = [torch.from_numpy(detector.computeSaliency(image.numpy())[1]) for image in images[:, 0]]
    assert torch.equal(fine_grained(images), torch.stack(expected))


def test_an_image_has_one_map_whatever_stands_beside_it(
    crops: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaling by a maximum of the batch, or work in parts, must not show."""
    images = crops(7, (40, 30))
    whole = fine_grained(images)
    assert torch.equal(whole, torch.cat([fine_grained(image.unsqueeze(0)) for image in images]))
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 2 * 40 * 30)
    assert torch.equal(fine_grained(images), whole)
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 1)
    assert torch.equal(fine_grained(images.contiguous(memory_format=torch.channels_last)), whole)


def test_the_number_of_operations_does_not_grow_with_the_batch_and_nothing_is_read_back() -> None:
    """A loop over images would make a GPU wait for the host."""
    counts = []
    for batch in (2, 9):
        images = noise(batch, (32, 32))
        with OperationCounter() as counter:
            fine_grained(images)
        assert counter.read_backs == []
        counts.append(counter.counts)
    assert counts[0] == counts[1]


def test_the_images_are_not_written() -> None:
    """Grey images of float32 inside would be an easy way to do so."""
    images = noise(3, (9, 9), channels=1)
    before = images.clone()
    fine_grained(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_images_that_are_not_8_bit_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    """OpenCV reads single bytes of floats as pixels, and says nothing."""
    with pytest.raises(
        InputError, match=r"`fine_grained` needs 8-bit images .*rlmix\.saliency\.to_uint8\(images, mean="
    ):
        fine_grained(torch.zeros(2, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 8, 3), (2, 2, 8, 8), (0, 3, 8, 8), (2, 3, 0, 8)])
def test_shapes_that_are_no_batches_of_pictures_are_refused(shape: tuple[int, ...]) -> None:
    """Channels at the end are the commonest slip."""
    with pytest.raises(InputError, match=r"`fine_grained` needs images \[B, 3, H, W\] or \[B, 1, H, W\], got \["):
        fine_grained(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.gpu
def test_a_gpu_gives_the_bits_of_the_cpu(crops: Callable[..., Tensor]) -> None:
    """Whole numbers in float32 are exact in every order of summation."""
    for size in ((32, 32), (224, 224)):
        images = crops(8, size)
        assert torch.equal(fine_grained(images.cuda()).cpu(), fine_grained(images))
