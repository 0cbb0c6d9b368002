"""The test part of a data set, for the evaluation of finished classifiers. Nothing in the environment imports this."""

from __future__ import annotations

import os

from torch import Tensor

from rlmix.envs.dynamics import standardized
from rlmix.envs.instances import Instance
from rlmix.training import data


def test_split(  # (no test, whatever its name looks like)
    instance: Instance,
    data_dir: str | os.PathLike[str] | None = None,  # noqa: PT028
) -> tuple[Tensor, Tensor]:
    """Return images that no instance trains on, observes or is rewarded for.

    Args:
        instance: a training problem.
        data_dir: where data sets lie that are not part of a package.

    Returns:
        float32 [m, C, H, W], standardized as the training part is, and their int64 [m] labels, free of the
        instance's noise.

    Raises:
        DataError: the files are not there.
    """
    arrays = data.load(instance.data, data_dir)
    return standardized(arrays.test_images, arrays.train_images), arrays.test_labels


# pytest would take the name for a test wherever it is imported.
test_split.__test__ = False  # type: ignore[attr-defined]
