"""rlmix.ops.spectrum, against NumPy and literal sums of waves."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch

from rlmix.ops import spectrum


@pytest.mark.parametrize(("shape", "size"), [((6, 8), (6, 8)), ((5, 7), (5, 7)), ((4, 6), (12, 9)), ((1, 5), (1, 5))])
def test_a_field_is_the_sum_of_its_waves(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """A wave for each entry of the half spectrum and its mirror image, of amplitude 1 / max(f, 1 / side)^3."""
    height, width = shape
    noise = torch.randn(height, width // 2 + 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    field = torch.zeros(shape, dtype=torch.float64)
    for down in range(height):
        for across in range(width // 2 + 1):
            signed = down if down < (height + 1) // 2 else down - height
            frequency = math.hypot(signed / size[0], across / size[1])
            entry = complex(noise[down, across]) / max(frequency, 1.0 / max(size)) ** 3
            alone = across == 0 or 2 * across == width
            for y in range(height):
                for x in range(width):
                    wave = entry * cmath.exp(2j * math.pi * (down * y / height + across * x / width))
                    # A wave along the height alone has its mirror image in the spectrum already.
                    field[y, x] += (1.0 if alone else 2.0) * wave.real / (height * width)
    assert torch.allclose(spectrum.field(noise, shape, size, 3.0), field, atol=1e-9, rtol=1e-9)


def test_a_coarse_grid_keeps_the_low_waves_of_a_fine_one() -> None:
    """Amplitudes go by cycles per pixel, so a grid decides only where the spectrum ends."""
    fine = torch.zeros(32, 17, dtype=torch.complex64)
    fine[1, 2], fine[31, 1], fine[0, 3] = 1.0 + 2.0j, 0.5 - 1.0j, 2.0
    coarse = torch.zeros(16, 9, dtype=torch.complex64)
    coarse[1, 2], coarse[15, 1], coarse[0, 3] = fine[1, 2], fine[31, 1], fine[0, 3]
    whole, part = spectrum.field(fine, (32, 32), (32, 32), 3.0), spectrum.field(coarse, (16, 16), (32, 32), 3.0)
    assert torch.allclose(whole[::2, ::2] * 4.0, part, atol=1e-9)


@pytest.mark.parametrize("side", [(8, 8), (7, 9), (12, 5), (1, 4)])
def test_the_released_field_has_two_frequencies_along_the_width(side: tuple[int, int]) -> None:
    """Against NumPy's inverse transform of the first two rows of a scaled spectrum."""
    height, width = side
    columns = spectrum.released_columns(width)
    noise = torch.randn(columns, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    across = np.abs(np.fft.fftfreq(width)[: width // 2 + (2 if width % 2 else 1)])
    scaled = [part.double().numpy() for part in (noise.real, noise.imag)]
    for row in range(2):
        scaled[row] = scaled[row] / (np.maximum(np.hypot(row / height, across), 1.0 / max(side)) ** 3)[:, None]
    expected = np.fft.irfftn(scaled[0] + 1j * scaled[1], side, axes=(0, 1))
    field = spectrum.released_field(noise, side, side, 3.0)
    assert np.allclose(field.numpy(), expected)
    waves = torch.fft.rfft(field, dim=1).abs()
    assert float(waves[:, 2:].sum()) < 1e-9 * float(waves.sum())


def test_the_noise_is_normal_in_both_parts() -> None:
    """200,000 numbers: moments within six standard errors (2e-9 each), and no part knows the other."""
    count = 100_000
    drawn = spectrum.noise(torch.tensor([3]), 11, (count,))[0]
    assert bool(torch.isfinite(drawn.abs()).all())
    real, imaginary = drawn.real.double(), drawn.imag.double()
    for part in (real, imaginary):
        assert abs(float(part.mean())) < 6 / count**0.5
        assert abs(float(part.square().mean()) - 1.0) < 6 * (2 / count) ** 0.5
        assert abs(float((part**4).mean()) - 3.0) < 6 * (96 / count) ** 0.5
        for limit in (0.5, 1.0, 2.0):
            expected = math.erf(limit / 2**0.5)
            share = float((part.abs() < limit).double().mean())
            assert abs(share - expected) < 6 * (expected * (1 - expected) / count) ** 0.5
    assert abs(float((real * imaginary).mean())) < 6 / count**0.5
    assert abs(float((real.square() * imaginary.square()).mean()) - 1.0) < 6 * (8 / count) ** 0.5
