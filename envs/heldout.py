"""The test part of a data set, for the evaluation of finished classifiers. Nothing in the environment imports this."""

from __future__ import annotations

import os
from typing import final

import torch
from torch import Tensor

from rlmix.envs import dynamics
from rlmix.envs.instances import Instance, Pictures
from rlmix.training import data


@final
class HeldOut:
    """The test parts of data sets, each loaded once.

    Args:
        data_dir: where data sets lie that are not part of a package.
    """

    def __init__(self, data_dir: str | os.PathLike[str] | None = None) -> None:
        self._data_dir = data_dir
        self._parts: dict[Pictures, tuple[Tensor, Tensor, int]] = {}

    def of(self, instance: Instance) -> tuple[Tensor, Tensor]:
        """Return images that no instance trains on, observes or is rewarded for.

        Args:
            instance: a training problem.

        Returns:
            float32 [m, C, H, W], standardized as the training part is and with the instance's input noise, and their
            int64 [m] labels, free of the instance's noise. Of a data set of which classes were drawn, theirs.

        Raises:
            DataError: the files are not there.
        """
        if instance.pictures not in self._parts:
            name, side, grey = instance.pictures
            arrays = data.load(name, self._data_dir)
            train, test = (dynamics.resized(part, side, grey) for part in (arrays.train_images, arrays.test_images))
            self._parts[instance.pictures] = (
                dynamics.standardized(test, train), arrays.test_labels, arrays.num_classes,
            )  # fmt: skip
        images, labels, available = self._parts[instance.pictures]
        numbers = dynamics.class_numbers(instance, available)[labels]
        rows = torch.nonzero(numbers >= 0).squeeze(1)
        # What is known of all rows is not copied.
        chosen = images if len(rows) == len(images) else images[rows]
        return dynamics.noisy_images(chosen, instance, dynamics.TEST_GRAIN), numbers[rows]


def test_split(  # (no test, whatever its name looks like)
    instance: Instance,
    data_dir: str | os.PathLike[str] | None = None,  # noqa: PT028
) -> tuple[Tensor, Tensor]:
    """Return the test images of one instance; see `HeldOut.of`."""
    return HeldOut(data_dir).of(instance)


# pytest would take the name for a test wherever it is imported.
test_split.__test__ = False  # type: ignore[attr-defined]
