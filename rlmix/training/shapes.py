"""Generated pictures of plane figures: a data set of natural size that needs no files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlmix.ops import rng

CLASSES = ("disk", "ring", "triangle", "square", "pentagon", "star", "cross", "bar", "crescent", "two disks")
SIDE = 32
TRAIN, TEST = 6000, 1000

# What is drawn for a picture.
_CLASS, _PLACE, _SIZE, _ANGLE, _COLOURS, _GRAIN, _WAVES = range(101, 108)
_KEY = rng.words("generated shapes")


def shapes() -> tuple[Tensor, Tensor]:
    """Return TRAIN + TEST pictures, float32 [n, 3, SIDE, SIDE] in [0, 1], and their classes, int64 [n].

    Each shows one bright figure of a random place, size, angle (up to 45 degrees) and colour on a darker background
    with waves and grain. The numbers are functions of a fixed key, the same everywhere.
    """
    count = TRAIN + TEST
    key = torch.tensor([_KEY])

    def drawn(purpose: int, *shape: int) -> Tensor:
        return rng.uniform(key, purpose, (count, *shape))[0]

    labels = rng.integers(key, _CLASS, (count,), len(CLASSES))[0]
    pixels = (torch.arange(SIDE) + 0.5) / SIDE * 2.0 - 1.0
    centre = (drawn(_PLACE, 2, 1, 1) - 0.5) * 0.5
    size = 0.45 + 0.3 * drawn(_SIZE, 1, 1)
    angle = (drawn(_ANGLE, 1, 1) - 0.5) * (0.5 * math.pi)
    down, across = pixels.view(1, SIDE, 1) - centre[:, 0], pixels.view(1, 1, SIDE) - centre[:, 1]
    x = (torch.cos(angle) * across + torch.sin(angle) * down) / size
    y = (torch.cos(angle) * down - torch.sin(angle) * across) / size
    outside = torch.empty_like(x)
    for number, distance in enumerate(_FIGURES):
        rows = labels == number
        outside[rows] = distance(x[rows], y[rows]) * size[rows]
    # The edge is as wide as a pixel.
    inside = (0.5 - outside * (SIDE / 2)).clamp(0.0, 1.0).unsqueeze(1)
    ground, figure = drawn(_COLOURS, 2, 3, 1, 1).unbind(1)
    frequency, phase = drawn(_WAVES, 2, 1, 1, 1).unbind(1)
    waves = 0.15 * torch.sin(8.0 * frequency * (pixels.view(1, 1, SIDE, 1) + pixels) + 2.0 * math.pi * phase)
    grain = 0.25 * (drawn(_GRAIN, 3, SIDE, SIDE) - 0.5)
    pictures = torch.lerp(0.5 * ground + waves, 0.4 + 0.6 * figure, inside) + grain
    return pictures.clamp(0.0, 1.0), labels


def _disk(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.85


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.2


def _polygon(x: Tensor, y: Tensor, corners: int, radius: float) -> Tensor:
    """Return how far a point lies outside a regular polygon, measured across the nearest side."""
    sector = 2.0 * math.pi / corners
    turned = torch.remainder(torch.atan2(y, x), sector) - sector / 2
    return torch.hypot(x, y) * torch.cos(turned) - radius * math.cos(sector / 2)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return _polygon(x, y, 3, 1.2)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _polygon(x, y, 4, 1.05)


def _pentagon(x: Tensor, y: Tensor) -> Tensor:
    return _polygon(x, y, 5, 1.0)


def _star(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.65 - 0.35 * torch.cos(5.0 * torch.atan2(y, x))


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 1.0, 0.28), _box(x, y, 0.28, 1.0))


def _bar(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 1.1, 0.32)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.45, y))


def _two_disks(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x.abs() - 0.6, y) - 0.45


_FIGURES = (_disk, _ring, _triangle, _square, _pentagon, _star, _cross, _bar, _crescent, _two_disks)
