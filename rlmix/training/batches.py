"""Which images a training sees, and in which order: functions of its seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rlmix.errors import ConfigError
from rlmix.ops import rng
from rlmix.training.data import Arrays

# Streams under the seed; 1 and 2 are the controller's, 3 gives the weights, 6 augments.
_ORDER, _HELD_OUT = 4, 5
_MISTAKES = 7
_PERMUTATION = 100
_CLASS = 101


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """The images of a training on its device: float32 [., C, H, W] in [0, 1] with labels int64 [.]."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]


def split(arrays: Arrays, validation: float, seed: int, device: torch.device, *, noise: float = 0.0) -> Splits:
    """Hold out validation images and move everything to the device.

    Args:
        arrays: the data set.
        validation: share of the training images that is held out, in [0, 1).
        seed: decides which, and which labels are wrong.
        device: where the images go.
        noise: share of wrong labels among the training and the validation images together, in [0, 1). A user's
            validation images are labelled no better than the others.

    Raises:
        ConfigError: no image is left to train with, or there is no other class for a wrong label.
    """
    count = len(arrays.train_labels)
    held_out = round(count * validation)
    if held_out >= count:
        raise ConfigError(f"`validation` {validation} leaves none of the {count} training images.")
    key = rng.derive(seed, _HELD_OUT)
    order = rng.permutation(torch.tensor([key]), _PERMUTATION, count)[0]
    labels = mislabelled(arrays.train_labels, noise, arrays.num_classes, seed)
    left_out, train = (
        (arrays.train_images[rows].to(device), labels[rows].to(device)) for rows in (order[:held_out], order[held_out:])
    )
    test = (arrays.test_images.to(device), arrays.test_labels.to(device))
    return Splits(train=train, validation=left_out if held_out else None, test=test)


def mislabelled(labels: Tensor, share: float, num_classes: int, seed: int) -> Tensor:
    """Return labels of which round(share * n) are replaced, each by one of the other classes, all equally likely.

    Args:
        labels: int64 [n], on the CPU; not written.
        share: in [0, 1).
        num_classes: C.
        seed: decides which, and by what. Of two shares the larger has the wrong labels of the smaller, and more.

    Returns:
        int64 [n], new memory.

    Raises:
        ConfigError: labels shall be wrong, but there is one class only.
    """
    wrong = round(len(labels) * share)
    if wrong and num_classes < 2:
        raise ConfigError(f"`noise` {share} needs a second class that labels could be mistaken for.")
    key = torch.tensor([rng.derive(seed, _MISTAKES)])
    rows = rng.permutation(key, _PERMUTATION, len(labels))[0][:wrong]
    others = 1 + rng.integers(key, _CLASS, labels.shape, max(1, num_classes - 1))[0]
    result = labels.clone()
    result[rows] = (labels[rows] + others[rows]) % num_classes
    return result


def batches(count: int, batch_size: int, epochs: int, seed: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yield (step, rows int64 [batch_size]) from step `start` on.

    The order of an epoch is a function of (seed, epoch). An incomplete last batch is left out.

    Args:
        count: examples.
        batch_size: at most `count`.
        epochs: how often all are seen.
        seed: whole number in [0, 2**63).
        start: the first step to yield.
    """
    steps = count // batch_size
    for epoch in range(start // steps, epochs):
        key = rng.derive(seed, _ORDER, epoch)
        order = rng.permutation(torch.tensor([key]), _PERMUTATION, count)[0]
        for place in range(max(0, start - epoch * steps), steps):
            yield epoch * steps + place, order[place * batch_size : (place + 1) * batch_size]
