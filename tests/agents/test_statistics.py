"""The statistics of paired runs against closed forms and slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlmix.agents.statistics import (
    improvements,
    iqm,
    mean,
    probability_of_improvement,
    stratified_bootstrap,
)
from rlmix.errors import InputError


@pytest.mark.parametrize("count", range(1, 14))
def test_iqm_leaves_out_the_outer_quarters_whatever_the_count(count):
    """An off-by-one in the cut would average other values for counts that four does not divide."""
    values = np.random.default_rng(count).normal(size=count)
    kept = sorted(values)[math.floor(count * 0.25) : count - math.floor(count * 0.25)]
    assert float(iqm(values)) == pytest.approx(sum(kept) / len(kept), abs=1e-12)


def test_iqm_by_hand():
    """The definition, on eight numbers: two lowest and two highest go, outliers among them."""
    assert float(iqm(np.array([1000.0, 3.0, -50.0, 4.0, 5.0, 1.0, 6.0, 99.0]))) == pytest.approx((3 + 4 + 5 + 6) / 4)


def test_statistics_work_along_the_last_axis():
    """The bootstrap hands over [resamples, n]; averaging the wrong axis would give numbers of the right type."""
    values = np.random.default_rng(0).normal(size=(3, 5, 9))
    assert iqm(values).shape == mean(values).shape == (3, 5)
    assert float(iqm(values)[2, 4]) == float(iqm(values[2, 4]))


def test_bootstrap_of_a_mean_covers_what_the_exact_bootstrap_covers():
    """With two strata of two values every resample can be listed; the interval must be that of the full list."""
    values, strata = np.array([0.0, 1.0, 10.0, 30.0]), ["a", "a", "b", "b"]
    exact = [
        (values[i] + values[j] + values[k] + values[m]) / 4
        for i, j in itertools.product((0, 1), repeat=2)
        for k, m in itertools.product((2, 3), repeat=2)
    ]
    interval = stratified_bootstrap(values, strata, mean, level=0.6, resamples=20_000)
    assert interval.estimate == pytest.approx(10.25)
    # 3 of 16 equally likely means lie below the lower end and 3 above the upper one.
    assert (interval.low, interval.high) == pytest.approx((sorted(exact)[3], sorted(exact)[12]))


def test_strata_keep_their_shares():
    """Resampling across strata would let a constant difference between strata widen the interval."""
    values = np.repeat([0.0, 100.0], [30, 10])
    interval = stratified_bootstrap(values, np.repeat([0, 1], [30, 10]), mean)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((25.0, 25.0, 25.0))
    assert stratified_bootstrap(values, np.zeros(40), mean).low < 20.0


def test_interval_has_the_width_of_the_normal_approximation():
    """The percentile interval of a mean of 400 values is +-1.96 standard errors; within 10 % for 4,000 resamples."""
    values = np.random.default_rng(5).normal(3.0, 2.0, size=400)
    interval = stratified_bootstrap(values, np.zeros(400), mean)
    half = 1.96 * values.std() / 20.0
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)
    assert interval.low < interval.estimate < interval.high


def test_same_seed_same_interval_and_global_state_untouched():
    """A report that changes from print to print cannot be checked."""
    values = np.random.default_rng(1).normal(size=20)
    before = np.random.get_state()[1].copy()  # noqa: NPY002  (the global state is what must not move)
    first = stratified_bootstrap(values, np.zeros(20), iqm, seed=3)
    assert first == stratified_bootstrap(values, np.zeros(20), iqm, seed=3)
    assert first != stratified_bootstrap(values, np.zeros(20), iqm, seed=4)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_probability_of_improvement_counts_ties_half():
    """Counting ties as losses would make an agent worse than itself."""
    first, second = [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 4.0, 2.5]
    np.testing.assert_array_equal(improvements(first, second), [1.0, 0.5, 0.0, 1.0])
    assert probability_of_improvement(first, second, [0, 0, 1, 1]).estimate == pytest.approx(2.5 / 4)
    own = probability_of_improvement(first, first, [0, 0, 1, 1])
    assert (own.estimate, own.low, own.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "strata", "message"),
    [
        ([], [], r"`values` must be one-dimensional and not empty, got the shape \(0,\)"),
        ([[1.0]], [0], "one-dimensional"),
        ([1.0, 2.0], [0], r"one label for each value, got \(1,\) for \(2,\)"),
        ([1.0, math.nan], [0, 0], "must be finite, got 1 that are not"),
    ],
)
def test_bad_values_are_named(values, strata, message):
    """A NaN accuracy would otherwise turn every interval into NaN in silence."""
    with pytest.raises(InputError, match=message):
        stratified_bootstrap(values, strata)
