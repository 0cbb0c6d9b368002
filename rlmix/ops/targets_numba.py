"""Soft targets of pairs of images as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops.compiled import array


def soft_targets(labels: Tensor, partners: Tensor, shares: Tensor, num_classes: int) -> Tensor:
    """Return the mixed label distributions of images with one partner each.

    Args:
        labels: int64 [B] in [0, num_classes).
        partners: int64 [B, 1] in [0, B).
        shares: float32 [B, 1], the label weights of the partners.
        num_classes: C.

    Returns:
        float32 [B, C].

    Raises:
        RuntimeError: a label or a partner out of its range.
    """
    targets = np.zeros((len(labels), num_classes), np.float32)
    if not _fill(array(labels), array(partners).reshape(-1), array(shares).reshape(-1), targets):
        raise RuntimeError(f"a label is not in [0, {num_classes}), or a partner not in [0, {len(labels)}).")
    return torch.from_numpy(targets)


@numba.njit(cache=True, nogil=True)
def _fill(labels: Any, partners: Any, shares: Any, targets: Any) -> bool:
    rows, classes = targets.shape
    for row in range(rows):
        if not (0 <= partners[row] < rows and 0 <= labels[row] < classes and 0 <= labels[partners[row]] < classes):
            return False
        targets[row, labels[row]] = np.float32(1.0) - shares[row]
        targets[row, labels[partners[row]]] += shares[row]
    return True
