"""The statistics of paired runs against closed forms and slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rlmix.agents.statistics import (
    hierarchical_bootstrap,
    holm,
    improvements,
    iqm,
    mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    t_interval,
    worst_decile,
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


def test_hierarchical_bootstrap_draws_what_the_full_list_of_resamples_holds():
    """Two instances, two seeds, two replicates: all 256 resamples can be listed, and each must be as frequent as there.

    Seeds drawn for each instance, or replicates drawn once for all, would give other means. 20,000 draws; a share may
    be off by 6 standard errors (false alarm below 1e-7 with 60 distinct means).
    """
    values = np.random.default_rng(4).integers(0, 1000, (2, 2, 2)).astype(float)
    exact: dict[float, int] = {}
    for seeds in itertools.product(range(2), repeat=2):
        for picks in itertools.product(range(2), repeat=2):
            for repeats in itertools.product(itertools.product(range(2), repeat=2), repeat=2):
                parts = [
                    values[pick, seed, repeat] for pick, own in zip(picks, repeats, strict=True)
                    for seed in seeds for repeat in own
                ]  # fmt: skip
                exact[sum(parts) / 8] = exact.get(sum(parts) / 8, 0) + 1
    drawn = hierarchical_bootstrap(values, [0, 0], resamples=20_000).drawn.mean(1)
    found, counts = np.unique(drawn, return_counts=True)
    assert set(found.tolist()) <= set(exact)
    for value, count in exact.items():
        share = count / 256
        seen = counts[found == value].sum() / 20_000
        assert abs(seen - share) < 6 * math.sqrt(share / 20_000), value


def test_luck_of_a_seed_does_not_average_away_over_instances():
    """Four policies judged on fifty instances are four independent numbers, not two hundred."""
    effect = np.array([0.0, 1.0, 2.0, 5.0])
    values = np.broadcast_to(effect[None, :, None], (50, 4, 1))
    drawn = hierarchical_bootstrap(values, np.zeros(50)).drawn.mean(1)
    assert drawn.std() == pytest.approx(effect.std() / 2, rel=0.05)


def test_seeds_of_both_sides_are_drawn_independently():
    """Each with each: the variance of the difference is the sum of both, as for two sets of independent policies."""
    first, second = np.array([0.0, 1.0, 5.0]), np.array([0.0, 4.0])
    values = np.broadcast_to(first[None, :, None, None] - second[None, None, :, None], (9, 3, 2, 1))
    found = hierarchical_bootstrap(values, np.zeros(9))
    assert found.interval().estimate == pytest.approx(first.mean() - second.mean())
    assert found.drawn.mean(1).var() == pytest.approx(first.var() / 3 + second.var() / 2, rel=0.1)


def test_one_instance_in_a_stratum_still_has_the_noise_of_its_replicates():
    """Resampling instances alone would give an interval of no width around one noisy number."""
    values = np.random.default_rng(2).normal(size=(1, 10))
    interval = hierarchical_bootstrap(values, ["long"]).interval()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(10), rel=0.15)


def test_without_seeds_and_replicates_it_is_the_stratified_bootstrap():
    """Published intervals must not move because the function became more general."""
    values, strata = np.random.default_rng(3).normal(size=30), np.repeat([0, 1, 2], 10)
    drawn = hierarchical_bootstrap(values[:, None, None], strata, seed=5)
    assert drawn.interval(iqm) == stratified_bootstrap(values, strata, iqm, seed=5)


def test_interval_covers_the_truth_and_p_value_calls_out_as_often_as_it_says():
    """400 studies of nothing: 40 instances that differ, 3 replicates with noise.

    The true rate is below 6 % (nominal 5 %, and replicates widen the interval); more than 13 % of 400 has a
    probability below 1e-6.
    """
    rng = np.random.default_rng(11)
    missed = called = 0
    for study in range(400):
        values = rng.normal(size=(40, 1, 1)) + rng.normal(size=(40, 1, 3))
        drawn = hierarchical_bootstrap(values, np.zeros(40), resamples=400, seed=study)
        interval = drawn.interval(mean)
        missed += not interval.low <= 0.0 <= interval.high
        called += drawn.p_value(mean) < 0.05
    assert missed <= 52
    assert called <= 52
    # Nor may it be so wide that nothing is ever found: 1 % of 400 or fewer has, at 2.5 % or more, a probability of .03.
    assert missed >= 1


def test_p_value_and_interval_never_contradict_each_other():
    """A table that says p = 0.2 beside an interval above 0 is not believed."""
    rng = np.random.default_rng(0)
    seen = set()
    for shift in np.linspace(-1.0, 1.0, 41):
        drawn = hierarchical_bootstrap(rng.normal(shift, 1.0, size=(20, 2)), np.zeros(20), resamples=999)
        for level in (0.8, 0.95, 0.99):
            interval = drawn.interval(iqm, level=level)
            outside = interval.low > 0 or interval.high < 0
            seen.add(outside)
            p = drawn.p_value(iqm)
            # Between them stands one resample at each end.
            assert p <= 1 - level + 4 / 1000 if outside else p >= 1 - level - 4 / 1000
    assert seen == {True, False}
    same = hierarchical_bootstrap(np.zeros((5, 1)), np.zeros(5))
    assert same.p_value() == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_all_subsets(seed):
    """The definition behind the shortcut: reject only what every subset that holds it rejects by Bonferroni."""
    p = np.random.default_rng(seed).beta(0.4, 2.0, size=6).tolist()
    expected = []
    for own in range(6):
        subsets = [s for k in range(1, 7) for s in itertools.combinations(range(6), k) if own in s]
        expected.append(max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets))
    assert holm(p) == pytest.approx(expected)


def test_holm_by_hand():
    """.01 * 4, .02 * 3, .03 * 2 and .9: the third is lifted to the second, and the order given is kept."""
    assert holm([0.02, 0.9, 0.01, 0.025]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([]) == []
    with pytest.raises(InputError, match=r"must be in \[0, 1\], got \[1.5\]"):
        holm([1.5])


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 21])
def test_worst_decile_is_the_mean_of_the_lowest_tenth_rounded_up(count):
    """Rounded down, nine instances would have no worst tenth."""
    values = np.random.default_rng(count).normal(size=count)
    lowest = sorted(values)[: math.ceil(count / 10)]
    assert float(worst_decile(values)) == pytest.approx(sum(lowest) / len(lowest))
    assert worst_decile(np.stack([values, values])).shape == (2,)


def test_performance_profile_is_the_share_above():
    """At a value itself the share is of those strictly above, so that no gain is no gain."""
    np.testing.assert_allclose(performance_profile([[0.0, 1.0], [2.0, 2.0]], [-1.0, 0.0, 1.5, 2.0]), [1, 0.75, 0.5, 0])
    with pytest.raises(InputError, match="must not be empty"):
        performance_profile([], [0.0])


def test_values_of_another_rank_are_named():
    """A forgotten axis would be taken for seeds."""
    with pytest.raises(InputError, match=r"or \[n, A, B, R\] and not empty, got the shape \(3,\)"):
        hierarchical_bootstrap([1.0, 2.0, 3.0], [0, 0, 0])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 11, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_students_interval_is_that_of_scipy(count, level):
    """Odd and even degrees of freedom have series of their own."""
    from scipy import stats

    values = np.random.default_rng(count).normal(size=count)
    found = t_interval(values, level=level)
    low, high = stats.t.interval(level, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.estimate, found.low, found.high) == pytest.approx((values.mean(), low, high), abs=1e-9, rel=1e-9)


def test_students_interval_of_one_value_knows_nothing():
    """A width of 0 would say that the value is certain."""
    found = t_interval([0.3])
    assert (found.estimate, found.low, found.high) == (0.3, -math.inf, math.inf)
    assert t_interval([0.5, 0.5, 0.5]).high == 0.5


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan]])
def test_students_interval_of_no_numbers_is_refused(values):
    """The mean of nothing is no estimate."""
    with pytest.raises(InputError, match="`values` must be one or more finite numbers"):
        t_interval(values)
