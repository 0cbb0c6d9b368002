"""Natural pictures."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

Crops = Callable[..., Tensor]


@pytest.fixture(scope="session")
def crops() -> Crops:
    """Return what cuts random parts, at several reductions, out of two photographs: uint8 [count, 3, H, W], RGB."""
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]

    def cut(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
        generator = np.random.default_rng(seed)
        parts = []
        for number in range(count):
            picture = photographs[number % 2]
            most = min(3, picture.shape[0] // size[0], picture.shape[1] // size[1])
            height, width = (side * int(generator.integers(1, most + 1)) for side in size)
            top = int(generator.integers(picture.shape[0] - height + 1))
            left = int(generator.integers(picture.shape[1] - width + 1))
            part = np.ascontiguousarray(picture[top : top + height, left : left + width])
            parts.append(cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA))
        return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()

    return cut
