"""Saliency by what is unusual in the spectrum of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.saliency._eight_bit import Order, grey

_SIDE = 64
_SIGMA = 8.0

# Amplitudes of an image of whole numbers below this are what rounding left of a zero.
_LEAST_AMPLITUDE = 1e-6


def spectral_residual(images: Tensor, *, order: Order = "rgb") -> Tensor:
    """Return the spectral residual saliency of each image: where it departs from an average spectrum.

    The logarithm of the amplitude spectrum, less its own local mean, is brought back to the image with the phase
    unchanged. No gradients, no learning, no model.

    Source: Hou and Zhang 2007, https://doi.org/10.1109/CVPR.2007.383267, at 64x64 pixels and with the
    constants of OpenCV (`cv2.saliency.StaticSaliencySpectralResidual`): as there, the map is smoothed by 5x5 pixels
    before it is squared, not after. A frequency that an image does not have stays absent, where OpenCV would give its
    rounding errors full weight.

    Args:
        images: uint8 [B, 3, H, W] of any size, or [B, 1, H, W] that is grey already; any device.
        order: "rgb" or "bgr", the order of the three channels (OpenCV takes its input for BGR).

    Returns:
        float32 [B, H, W] in [0, 1]; before it was brought to the image's size each map had the maximum 1 (a black
        image: 0).

    Raises:
        InputError: the images are not uint8 (`to_uint8` makes them so), not [B, 3, H, W] or [B, 1, H, W], or `order`
            is unknown.
    """
    lightness = grey(images, order, "spectral_residual").unsqueeze(1)
    # Whole numbers again, as in OpenCV: an image brought to a larger size has little in its high frequencies but the
    # rounding, and the residual gives them all the same weight.
    small = functional.interpolate(lightness, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
    spectrum = torch.fft.fft2((small + 0.5).floor_().double().squeeze(1))
    amplitude = spectrum.abs().clamp_min_(_LEAST_AMPLITUDE)
    logarithm = amplitude.log()
    mean = _smoothed(logarithm, torch.full((3,), 1 / 3, dtype=torch.float64, device=images.device))
    # The phase with the amplitude of the residual.
    residual = torch.fft.ifft2(spectrum * ((logarithm - mean).exp_() / amplitude)).abs()
    offsets = torch.arange(-2, 3, dtype=torch.float64, device=images.device)
    kernel = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    maps = _smoothed(residual, kernel / kernel.sum()).square_()
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    size = (images.shape[2], images.shape[3])
    return functional.interpolate(maps.float().unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _smoothed(values: Tensor, kernel: Tensor) -> Tensor:
    """Return [B, h, w] weighed by a kernel of odd length along both sides, mirrored at the borders."""
    reach = kernel.shape[0] // 2
    padded = functional.pad(values.unsqueeze(1), (reach, reach, reach, reach), mode="reflect").squeeze(1)
    rows = padded.unfold(1, kernel.shape[0], 1) @ kernel
    return rows.unfold(2, kernel.shape[0], 1) @ kernel
