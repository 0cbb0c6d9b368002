"""Random fields of low frequencies, from Gaussian noise in the spectrum.

Frequencies are counted in cycles per pixel of the image, whatever grid the field is wanted on: a grid that is coarser
than the image leaves the highest frequencies out and changes nothing else. Fields are computed in double precision,
because the rounding of a batched transform may depend on how many are computed beside each other, and an order of
values that were computed in single precision would show it now and then.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlmix.ops import rng


def noise(keys: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Return complex numbers whose real and imaginary parts are standard normal: complex64 [G, *shape].

    In polar form, so that each takes two random numbers (Box and Muller 1958).
    """
    radius, angle = rng.uniform(keys, purpose, (2, *shape)).unbind(1)
    return torch.polar(torch.sqrt(-2.0 * torch.log1p(-radius)), 2.0 * math.pi * angle)


def field(spectrum: Tensor, shape: tuple[int, int], size: tuple[int, int], decay: float) -> Tensor:
    """Return real fields whose amplitude falls with the frequency f as 1 / max(f, 1 / max(H, W)) ** decay.

    Args:
        spectrum: complex [..., h, w // 2 + 1], the noise in the half spectrum.
        shape: (h, w) of the grid.
        size: (H, W) of the image.
        decay: the exponent, at least 0.

    Returns:
        float64 [..., h, w].
    """
    height, width = shape
    down = torch.fft.fftfreq(height, d=1.0 / height, dtype=torch.float64, device=spectrum.device) / size[0]
    across = torch.arange(width // 2 + 1, dtype=torch.float64, device=spectrum.device) / size[1]
    drawn: Tensor = torch.fft.irfft2(spectrum * _amplitude(down, across, size, decay), s=shape)
    return drawn


def released_columns(width: int) -> int:
    """Return how many frequencies along the width `released_field` takes."""
    return width // 2 + 1 + width % 2


def released_field(spectrum: Tensor, shape: tuple[int, int], size: tuple[int, int], decay: float) -> Tensor:
    """Return the fields that FMix's released code computes.

    That code takes the first two rows of the half spectrum [h, m, 2], in which the last axis holds the real and the
    imaginary part, for the real and the imaginary part. What is left is a spectrum of m frequencies along the height,
    not below 0, and of two, 0 and 1, along the width.

    Args:
        spectrum: complex [..., m, 2], m = `released_columns(w)`: the noise, scaled here as those rows are.
        shape: (h, w) of the grid.
        size: (H, W) of the image.
        decay: the exponent, at least 0.

    Returns:
        float64 [..., h, w].
    """
    index = torch.arange(spectrum.shape[-2], dtype=torch.float64, device=spectrum.device)
    # With an odd width the released code keeps one frequency too many, the negative twin of the highest.
    across = index.clamp_max(shape[1] // 2) / size[1]
    down = torch.arange(2, dtype=torch.float64, device=spectrum.device) / size[0]
    first, second = _amplitude(down, across, size, decay).unsqueeze(-1).unbind(0)
    drawn: Tensor = torch.fft.irfft2(torch.complex(spectrum.real * first, spectrum.imag * second), s=shape)
    return drawn


def _amplitude(down: Tensor, across: Tensor, size: tuple[int, int], decay: float) -> Tensor:
    """Return 1 / max(f, 1 / max(H, W)) ** decay: float64 [n, m] for frequencies [n] and [m]."""
    return torch.hypot(down.unsqueeze(1), across).clamp_min(1.0 / max(size)) ** -decay
