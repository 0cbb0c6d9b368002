"""rlmix.saliency.spectral_residual, against a literal version in NumPy and against OpenCV's detector."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from rlmix.errors import InputError
from rlmix.saliency import spectral_residual


def literal(image: Tensor) -> Tensor:
    """Follow the published steps for one RGB image uint8 [3, H, W], with OpenCV for what is no part of the method."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    lightness = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(lightness, (64, 64), interpolation=cv2.INTER_LINEAR_EXACT).astype(np.float64)
    spectrum = np.fft.fft2(small)
    logarithm, phase = np.log(np.abs(spectrum)), np.angle(spectrum)
    residual = logarithm - cv2.blur(logarithm, (3, 3))
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * phase)))
    saliency = cv2.GaussianBlur(saliency, (5, 5), 8) ** 2
    saliency = (saliency / saliency.max()).astype(np.float32)
    return torch.from_numpy(cv2.resize(saliency, tuple(image.shape[:0:-1])))


def opencv(image: Tensor) -> Tensor:
    """Return what OpenCV's detector gives of an RGB image uint8 [3, H, W]."""
    pixels = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
    return torch.from_numpy(cv2.saliency.StaticSaliencySpectralResidual.create().computeSaliency(pixels)[1])


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (100, 150), (75, 70)])
def test_it_is_the_literal_transform_where_no_frequency_is_absent(
    crops: Callable[..., Tensor], size: tuple[int, int]
) -> None:
    """Images of at least 64 pixels a side fill the whole spectrum."""
    images = crops(6, size)
    maps = spectral_residual(images)
    assert maps.dtype == torch.float32
    assert maps.shape == (6, *size)
    torch.testing.assert_close(maps, torch.stack([literal(image) for image in images]), rtol=0.0, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "worst", "typical"), [((32, 32), 0.1, 0.02), ((64, 64), 0.05, 0.003), ((224, 224), 0.005, 0.001)]
)
def test_it_is_opencv_within_the_error_of_its_phases(
    crops: Callable[..., Tensor], size: tuple[int, int], worst: float, typical: float
) -> None:
    """OpenCV approximates the angle of each frequency; it differs most where frequencies are nothing but rounding."""
    images = crops(12, size, seed=3)
    expected = torch.stack([opencv(image) for image in images])
    maps = spectral_residual(images)
    difference = (maps - expected).abs().flatten(1)
    assert float(difference.amax(1).max()) < worst
    assert float(difference.median(1).values.max()) < typical
    assert torch.equal(maps.flatten(1).argmax(1), expected.flatten(1).argmax(1))


def test_a_spot_on_a_rough_ground_is_what_is_found() -> None:
    """The method's purpose: what repeats is redundant, what differs is salient."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 130, (8, 1, 64, 64), generator=generator, dtype=torch.uint8)
    images[..., 29:35, 41:45] = 220
    for peak in spectral_residual(images).flatten(1).argmax(1).tolist():
        row, column = divmod(peak, 64)
        assert 26 <= row <= 37
        assert 38 <= column <= 47


@pytest.mark.parametrize("level", [0, 7, 255])
def test_an_image_without_contrast_has_no_relief(level: int) -> None:
    """Rounding errors, given full weight, would make one up."""
    maps = spectral_residual(torch.full((2, 3, 32, 40), level, dtype=torch.uint8))
    assert torch.equal(maps, torch.full((2, 32, 40), float(level > 0)))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (300, 20)])
def test_every_size_serves(size: tuple[int, int]) -> None:
    """Maps lie in [0, 1] at the images' own size."""
    images = torch.randint(0, 256, (3, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = spectral_residual(images)
    assert maps.shape == (3, *size)
    assert bool(((maps >= 0) & (maps <= 1)).all())
    alone = torch.cat([spectral_residual(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(alone, maps, rtol=0.0, atol=1e-6)


def test_the_order_of_the_channels_is_said_and_floats_are_refused(crops: Callable[..., Tensor]) -> None:
    """As for the other detector."""
    images = crops(2, (64, 64))
    assert torch.equal(spectral_residual(images.flip(1), order="bgr"), spectral_residual(images))
    with pytest.raises(InputError, match="`spectral_residual` needs 8-bit images"):
        spectral_residual(images.float())
