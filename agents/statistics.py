"""Statistics of paired runs: interquartile mean, stratified bootstrap intervals, probability of improvement.

The estimators follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(https://arxiv.org/abs/2108.13264), written for one array of values, one a problem instance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from rlmix.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]

RESAMPLES = 4000
# Rows of resampled values that are in memory at once; 256 rows of 1,000 instances are 2 MB.
_CHUNK = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its bootstrap interval.

    Attributes:
        estimate: the statistic of the values themselves.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    estimate: float
    low: float
    high: float


def mean(values: Floats) -> Floats:
    """Return the mean over the last axis, float64 [...]."""
    result: Floats = np.asarray(values, dtype=np.float64).mean(axis=-1)
    return result


def iqm(values: Floats) -> Floats:
    """Return the interquartile mean over the last axis, float64 [...].

    The floor(n / 4) lowest and the floor(n / 4) highest of n values are left out; the rest is averaged.

    Args:
        values: [..., n], n >= 1.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    result: Floats = ordered[..., cut : count - cut].mean(axis=-1)
    return result


def stratified_bootstrap(
    values: npt.ArrayLike,
    strata: npt.ArrayLike,
    statistic: Statistic = mean,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return `statistic` of `values` with a percentile bootstrap interval.

    Each resample draws, with replacement and separately in every stratum, as many values as the stratum has, so that
    a stratum keeps its share.

    Args:
        values: [n] finite numbers, one an independent unit (a problem instance, say).
        strata: [n] labels of any kind; equal labels are one stratum.
        statistic: maps [..., n] to [...].
        level: coverage of the interval, in (0, 1).
        resamples: number of resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        InputError: `values` is empty, not one-dimensional or not finite, or `strata` has another length.
    """
    data, labels = _checked(values, strata)
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    estimates = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picks = [group[rng.integers(0, len(group), (rows, len(group)))] for group in groups]
        estimates.append(statistic(data[np.concatenate(picks, axis=1)]))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(estimates), [tail, 1.0 - tail])
    return Interval(estimate=float(statistic(data)), low=float(low), high=float(high))


def improvements(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Return for each pair 1 where `first` is higher, 0 where it is lower and 1/2 where they are equal, float64.

    The mean of the result is the probability that a run of the first agent beats the paired run of the second.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    result: Floats = (np.sign(difference) + 1.0) / 2.0
    return result


def probability_of_improvement(
    first: npt.ArrayLike, second: npt.ArrayLike, strata: npt.ArrayLike, *, seed: int = 0
) -> Interval:
    """Return the probability that `first` beats the paired `second`, ties counted half, with a 95 % interval.

    Args:
        first: [n] scores, higher is better.
        second: [n] scores of the same instances.
        strata: [n] labels, as in `stratified_bootstrap`.
        seed: seed of the resampling.

    Raises:
        InputError: as in `stratified_bootstrap`.
    """
    return stratified_bootstrap(improvements(first, second), strata, mean, seed=seed)


def _checked(values: npt.ArrayLike, strata: npt.ArrayLike) -> tuple[Floats, npt.NDArray[Any]]:
    """Return both as arrays of one length, or say what is wrong with them."""
    data = np.asarray(values, dtype=np.float64)
    labels = np.asarray(strata)
    if data.ndim != 1 or data.size == 0:
        raise InputError(f"`values` must be one-dimensional and not empty, got the shape {data.shape}.")
    if labels.shape != data.shape:
        raise InputError(f"`strata` must have one label for each value, got {labels.shape} for {data.shape}.")
    if not np.isfinite(data).all():
        raise InputError(f"`values` must be finite, got {int((~np.isfinite(data)).sum())} that are not.")
    return data, labels
