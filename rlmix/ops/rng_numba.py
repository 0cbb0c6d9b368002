"""`rlmix.ops.rng.uniform64` as compiled code for the CPU; see `rlmix.ops.compiled`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rlmix.ops import rng
from rlmix.ops.compiled import array

_GOLDEN, _FIRST, _SECOND, _SPREAD = (np.uint64(word) for word in (rng._GOLDEN, rng._FIRST, rng._SECOND, rng._SPREAD))


def numbers(keys: Tensor, wanted: tuple[tuple[int, tuple[int, ...]], ...]) -> Any:
    """Return the numbers in (0, 1) of each (purpose, shape), one after the other: float64 array [G, n]."""
    counters = _counters(wanted)[0]
    drawn = np.empty((keys.shape[0], len(counters)))
    _fill(array(keys), counters, drawn)
    return drawn


def order(drawn: Any, count: int) -> Any:
    """Return what brings the first `count` numbers of each row into their order: int64 array [G, count]."""
    return drawn[:, :count].argsort(kind="stable")


def uniform64(keys: Tensor, wanted: tuple[tuple[int, tuple[int, ...]], ...]) -> list[Tensor]:
    """Return float64 [G, *shape] in (0, 1) for each (purpose, shape)."""
    return _parts(numbers(keys, wanted), wanted)


def permutation_and_uniform64(
    keys: Tensor, count: int, wanted: tuple[tuple[int, tuple[int, ...]], ...]
) -> tuple[Tensor, list[Tensor]]:
    """Return the permutation int64 [G, count] that the first of `wanted` gives, and the numbers of the others."""
    drawn = numbers(keys, wanted)
    return torch.from_numpy(order(drawn, count)), _parts(drawn, wanted)[1:]


def _parts(drawn: Any, wanted: tuple[tuple[int, tuple[int, ...]], ...]) -> list[Tensor]:
    return [
        torch.from_numpy(drawn[:, first:last].reshape(len(drawn), *shape))
        for first, last, shape in _counters(wanted)[1]
    ]


@lru_cache(maxsize=256)
def _counters(wanted: tuple[tuple[int, tuple[int, ...]], ...]) -> tuple[Any, list[tuple[int, int, tuple[int, ...]]]]:
    """Return the counters of each (purpose, shape), one after the other, and where each one's are."""
    counters, places, end = [], [], 0
    for purpose, shape in wanted:
        first, end = end, end + math.prod(shape)
        counters.append(np.arange(end - first, dtype=np.uint64) + np.uint64((purpose << 32) + 1))
        places.append((first, end, shape))
    return np.concatenate(counters), places


@numba.njit(cache=True, nogil=True)
def _fill(keys: Any, counters: Any, drawn: Any) -> None:
    for row in range(len(keys)):
        start = np.uint64(keys[row]) * _SPREAD
        for place in range(len(counters)):
            word = start + counters[place] * _GOLDEN
            word = (word ^ (word >> np.uint64(30))) * _FIRST
            word = (word ^ (word >> np.uint64(27))) * _SECOND
            word ^= word >> np.uint64(31)
            drawn[row, place] = (np.float64(np.int64(word >> np.uint64(12))) + 0.5) * 2.0**-52
