"""rlmix.ops.blur, against OpenCV and a loop."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix.ops.blur import gaussian_blur


def test_it_is_opencvs_blur() -> None:
    """7x7 with sigma 3, mirrored without the border."""
    cv2 = pytest.importorskip("cv2")
    maps = torch.rand(3, 20, 33, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(maps, (3, 3), (3.0, 3.0))
    for row in range(3):
        expected = cv2.GaussianBlur(maps[row].numpy(), (7, 7), 3.0, borderType=cv2.BORDER_REFLECT_101)
        assert torch.allclose(blurred[row], torch.from_numpy(expected), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 2), (2, 3), (3, 9)])
def test_sides_shorter_than_the_kernel_are_mirrored_again(size: tuple[int, int]) -> None:
    """By a loop that steps from border to border; each side may have a width of its own."""
    maps = torch.rand(2, *size, generator=torch.Generator().manual_seed(1))
    expected = maps.double()
    for axis, (reach, sigma) in enumerate(((2, 1.5), (4, 3.0)), 1):
        taps = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(-reach, reach + 1)]
        length, total = size[axis - 1], torch.zeros_like(expected)
        for place in range(length):
            for tap, height in zip(range(-reach, reach + 1), taps, strict=True):
                at = place + tap
                while length > 1 and not 0 <= at < length:
                    at = -at if at < 0 else 2 * (length - 1) - at
                at = 0 if length == 1 else at
                total.select(axis, place).add_(expected.select(axis, at), alpha=height / sum(taps))
        expected = total
    assert torch.allclose(gaussian_blur(maps, (2, 4), (1.5, 3.0)).double(), expected, atol=1e-6)


def test_no_reach_is_no_change_and_nothing_is_written() -> None:
    """A map too coarse for the blur keeps its bits."""
    maps = torch.rand(2, 5, 5)
    copy = maps.clone()
    assert torch.equal(gaussian_blur(maps, (0, 0), (0.3, 0.3)), maps)
    gaussian_blur(maps, (2, 2), (1.0, 1.0))
    assert torch.equal(maps, copy)
