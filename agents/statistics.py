"""Statistics of paired runs: interquartile mean, bootstrap intervals, probability of improvement, Holm's correction.

The estimators follow Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(https://arxiv.org/abs/2108.13264), Sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from rlmix.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]

LEVEL = 0.95
RESAMPLES = 4000
# Rows of resampled values that are in memory at once; 256 rows of 1,000 instances are 2 MB.
_CHUNK = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval.

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
    level: float = LEVEL,
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
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise InputError(f"`values` must be one-dimensional and not empty, got the shape {data.shape}.")
    drawn = hierarchical_bootstrap(data[:, None], strata, resamples=resamples, seed=seed)
    return drawn.interval(statistic, level=level)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """Values of independent units, and what they are in each resample.

    Attributes:
        values: float64 [n], the mean of each unit.
        drawn: float64 [resamples, n], the means of the units that each resample drew.
    """

    values: Floats
    drawn: Floats

    def interval(self, statistic: Statistic = mean, *, level: float = LEVEL) -> Interval:
        """Return `statistic` of the values with its percentile interval of coverage `level`, in (0, 1)."""
        tail = (1.0 - level) / 2.0
        low, high = np.quantile(statistic(self.drawn), [tail, 1.0 - tail])
        return Interval(estimate=float(statistic(self.values)), low=float(low), high=float(high))

    def p_value(self, statistic: Statistic = mean) -> float:
        """Return the two-sided p-value of "`statistic` is 0", in (0, 1].

        It is the smallest 1 - level whose percentile interval leaves 0 out (Efron, Tibshirani 1993, "An Introduction to
        the Bootstrap", Section 15.4), so that a p-value and an interval never contradict each other but by the
        rounding of one resample, which is counted against the agent.
        """
        found = statistic(self.drawn)
        fewer = min(int((found <= 0.0).sum()), int((found >= 0.0).sum()))
        return min(1.0, 2.0 * (1 + fewer) / (1 + len(found)))


def hierarchical_bootstrap(
    values: npt.ArrayLike, strata: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Resamples:
    """Resample instances within their strata, replicates within each drawn instance, and agent seeds for all at once.

    Seeds are crossed with instances: one policy is trained once and then judged on every instance, so a resample draws
    one set of seeds and uses it everywhere. To draw them anew for each instance would average the luck of a seed away
    and give intervals that are too narrow. Replicates belong to an instance and are drawn there, the same ones for all
    seeds, as these share their random numbers. Resampling replicates on top of instances makes intervals a little too
    wide where instances are many, and keeps them honest where a stratum has one instance only.

    Args:
        values: [n, R], or [n, A, R], or [n, A, B, R]: finite numbers of n instances, R replicates each, by A seeds (and
            B seeds of whom they are compared with).
        strata: [n] labels of any kind; equal labels are one stratum.
        resamples: number of resamples.
        seed: seed of the resampling; the same seed gives the same numbers.

    Raises:
        InputError: `values` is empty, of another rank or not finite, or `strata` has another length.
    """
    data, labels = _checked(values, strata)
    count, repeats = data.shape[0], data.shape[-1]
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # [n * R, seeds]: a resample of seeds is then a weighted sum.
    flat = np.moveaxis(data.reshape(count, -1, repeats), 1, 2).reshape(count * repeats, -1)
    drawn = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        picks = np.concatenate([group[rng.integers(0, len(group), (rows, len(group)))] for group in groups], axis=1)
        weighted = (_weights(rng, rows, data.shape[1:-1]) @ flat.T).reshape(rows, count, repeats)
        weighted = np.take_along_axis(weighted, picks[:, :, None], axis=1)
        if repeats > 1:
            weighted = np.take_along_axis(weighted, rng.integers(0, repeats, weighted.shape), axis=2)
        drawn.append(weighted.mean(axis=2))
    return Resamples(values=data.reshape(count, -1).mean(axis=1), drawn=np.concatenate(drawn))


def t_interval(values: npt.ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the mean of a few values with Student's interval, which takes them as normally distributed.

    Student 1908 (https://doi.org/10.2307/2331554). For three seeds, say, where a percentile bootstrap only goes from
    the lowest value to the highest, and covers the truth in three cases of four.

    Args:
        values: [n] finite numbers. One alone says nothing of the others, so its interval is infinite.
        level: coverage of the interval, in (0, 1).

    Raises:
        InputError: `values` is empty, not one-dimensional or not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise InputError(f"`values` must be one or more finite numbers, got {np.array2string(data, threshold=10)}.")
    centre = float(data.mean())
    if data.size == 1:
        return Interval(estimate=centre, low=-math.inf, high=math.inf)
    half = float(stdtrit(data.size - 1, (1.0 + level) / 2.0)) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return Interval(estimate=centre, low=centre - half, high=centre + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being many, in the order given: Holm's step-down method.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure" (https://www.jstor.org/stable/4615733),
    Section 3: of m p-values the i-th smallest (from 0) is multiplied by m - i; none gets smaller than one before it, or
    larger than 1. To call those below 0.05 significant is wrong about any of them in at most 5 % of cases, however they
    depend on each other.

    Args:
        p_values: in [0, 1].

    Raises:
        InputError: a value out of range.
    """
    given = np.asarray(p_values, dtype=np.float64)
    if not ((given >= 0.0) & (given <= 1.0)).all():
        raise InputError(f"`p_values` must be in [0, 1], got {list(p_values)}.")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, given[order] * np.arange(len(given), 0, -1)))
    result: list[float] = adjusted.tolist()
    return result


def worst_decile(values: Floats) -> Floats:
    """Return the mean of the ceil(n / 10) lowest of n values along the last axis, float64 [...].

    Args:
        values: [..., n], n >= 1.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    result: Floats = ordered[..., : -(-ordered.shape[-1] // 10)].mean(axis=-1)
    return result


def performance_profile(values: npt.ArrayLike, thresholds: npt.ArrayLike) -> Floats:
    """Return the share of values above each threshold, float64 [k] in [0, 1] (Agarwal et al. 2021, Section 4.2).

    Args:
        values: numbers of any shape, at least one.
        thresholds: [k].

    Raises:
        InputError: there is no value.
    """
    data = np.asarray(values, dtype=np.float64).ravel()
    if data.size == 0:
        raise InputError("`values` must not be empty: a share of nothing is not defined.")
    result: Floats = (data[:, None] > np.asarray(thresholds, dtype=np.float64)[None]).mean(axis=0)
    return result


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


def _weights(rng: np.random.Generator, rows: int, seeds: Sequence[int]) -> Floats:
    """Return how much each combination of seeds counts in each resample, float64 [rows, product of seeds]."""
    joint: Floats = np.ones((rows, 1))
    for count in seeds:
        # With one seed nothing is drawn, so that the other draws stay what they are without this axis.
        picks = rng.integers(0, count, (rows, count)) if count > 1 else np.zeros((rows, 1), dtype=np.int64)
        own = (picks[:, :, None] == np.arange(count)).mean(axis=1)
        joint = (joint[:, :, None] * own[:, None, :]).reshape(rows, -1)
    return joint


def _checked(values: npt.ArrayLike, strata: npt.ArrayLike) -> tuple[Floats, npt.NDArray[Any]]:
    """Return both as arrays of one length, or say what is wrong with them."""
    data = np.asarray(values, dtype=np.float64)
    labels = np.asarray(strata)
    if data.ndim not in (2, 3, 4) or data.size == 0:
        raise InputError(
            f"`values` must be [n, R], [n, A, R] or [n, A, B, R] and not empty, got the shape {data.shape}."
        )
    if labels.shape != data.shape[:1]:
        raise InputError(f"`strata` must have one label for each value, got {labels.shape} for {data.shape[:1]}.")
    if not np.isfinite(data).all():
        raise InputError(f"`values` must be finite, got {int((~np.isfinite(data)).sum())} that are not.")
    return data, labels
