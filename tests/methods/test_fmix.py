"""FMix, against NumPy and a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlmix.errors import InputError, MethodError
from rlmix.methods import get
from rlmix.ops import grid, rng, spectrum
from rlmix.ops.rng import Streams
from rlmix.testing.methods import batch_of


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_the_highest_cells_of_a_field_of_low_frequencies_show_the_own_image(mode: str, size: tuple[int, int]) -> None:
    """The steps of the paper, or of the authors' code, image by image."""
    height, width = size
    _, _, inputs = batch_of(9, size)
    plan = get("fmix", mode=mode).plan(inputs, Streams([5]))
    key = torch.tensor([5])
    lams, rounded = rng.beta(key, rng.LAM, (9,), 1.0)[0], rng.uniform(key, rng.ROUND, (9,))[0]
    if mode == "paper":
        across = np.fft.rfftfreq(width)
        noise = spectrum.noise(key, rng.SPECTRUM, (9, height, width // 2 + 1))[0].numpy()
        frequencies = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + across**2)
    else:
        across = np.fft.fftfreq(width)[: width // 2 + (2 if width % 2 else 1)]
        noise = spectrum.noise(key, rng.SPECTRUM, (9, len(across), 2))[0].numpy()
        frequencies = np.sqrt(np.fft.fftfreq(height)[:2, None] ** 2 + across**2)
    for row in range(9):
        scale = np.maximum(frequencies, 1.0 / max(size)) ** 3
        if mode == "paper":
            waves = noise[row] / scale
        else:
            waves = noise[row].real / scale[0, :, None] + 1j * noise[row].imag / scale[1, :, None]
        field = np.fft.irfftn(waves, size, axes=(0, 1)).ravel()
        exact = float(lams[row] * (height * width))
        count = math.ceil(exact) if rounded[row] < 0.5 else math.floor(exact)
        mask = np.ones(height * width)
        for cell in sorted(range(height * width), key=lambda cell: -field[cell])[:count]:
            mask[cell] = 0.0
        assert plan.shares[row, 0].flatten().float().tolist() == mask.tolist()
        assert float(plan.lam[row]) == pytest.approx(count / (height * width), abs=1e-6) or plan.partners[row] == row


def test_the_number_of_own_cells_is_rounded_up_half_of_the_time() -> None:
    """Binomial over 2,000 images, six standard errors: a false alarm in 2e-9 of the runs."""
    _, _, inputs = batch_of(2000, (4, 4), channels=1)
    plan = get("fmix").plan(inputs, Streams([1]))
    exact = rng.beta(torch.tensor([1]), rng.LAM, (2000,), 1.0)[0] * 16
    own = 16 - plan.shares.sum((1, 2, 3))
    up, down = own == torch.ceil(exact), own == torch.floor(exact)
    assert bool((up | down).all())
    assert abs(int(up.sum()) - 1000) < 6 * 500**0.5


def test_a_large_image_has_a_grid_of_64_cells_a_side() -> None:
    """A side of 64 or less has a cell for each pixel; labels count pixels where cells differ in size."""
    _, _, inputs = batch_of(2, (100, 40), channels=1)
    plan = get("fmix").plan(inputs, Streams([1]))
    assert plan.shares.shape == (2, 1, 64, 40)
    assert plan.shares.dtype == torch.bool
    pixels = grid.expand(plan.shares[:, 0], (100, 40)).float()
    assert torch.allclose(plan.label_shares[:, 0], pixels.mean((1, 2)), atol=1e-6)


def test_one_mask_for_the_batch() -> None:
    """As the authors' code draws it."""
    _, _, inputs = batch_of(6, (12, 12))
    for mode in ("paper", "released"):
        shares = get("fmix", mode=mode, scope="batch").plan(inputs, Streams([3])).shares
        assert torch.equal(shares, shares[:1].expand_as(shares))


def test_bad_parameters_and_small_images_are_refused() -> None:
    """A grid that was given is not changed in silence."""
    with pytest.raises(MethodError, match="`mode` must be one of 'paper', 'released', got 'fast'"):
        get("fmix", mode="fast")
    with pytest.raises(MethodError, match=r"`decay` must be a number in \[0, 100\), got -1"):
        get("fmix", decay=-1)
    with pytest.raises(MethodError, match="`grid` must be a whole number of at least 1 or None, got True"):
        get("fmix", grid=True)
    with pytest.raises(InputError, match="the grid of 16x16 cells is finer than the image of 8x32"):
        get("fmix", grid=16).plan(batch_of(2, (8, 32))[2], Streams([0]))
