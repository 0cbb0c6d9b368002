"""Baselines that are made of runs that exist: best fixed, and the unbiased oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rlmix.agents.comparison import ORACLE, ORACLE_OF_ONE, with_oracle
from rlmix.agents.report import Report, Run, best_in_other_replicates
from rlmix.errors import InputError

ENTRIES = tuple(f"entry-{number}" for number in range(12))


def make_report(accuracies, entries=ENTRIES) -> Report:
    """Return a report of accuracies [instances, replicates, entries]."""
    runs = [
        Run(
            instance=f"i{instance}", agent=entries[entry], replicate=replicate, total_steps=56, epochs=1.0,
            accuracy=float(accuracies[instance, replicate, entry]), score=0.5, ts_nll=1.0, ece=0.1,
            actions=(entries[entry],) * 3,
        )
        for instance, replicate, entry in itertools.product(*map(range, accuracies.shape))
    ]  # fmt: skip
    return Report(instances="toy", digest="d", seed=0, split="test", with_validation=True, runs=tuple(runs))


def accuracy_of(report, agent):
    return np.array([run.accuracy for run in report.of(agent)])


def test_oracle_is_not_biased_where_the_naive_one_is():
    """Twelve entries of equal worth: hindsight over the same runs invents 1.6 standard deviations, this one nothing.

    60 instances of 4 replicates, noise 2 points; the bound is 5 standard errors of 240 runs (false alarm below 1e-6).
    """
    accuracies = 0.5 + 0.02 * np.random.default_rng(0).normal(size=(60, 4, 12))
    report = with_oracle(make_report(accuracies), ENTRIES)
    naive = accuracies.max(axis=2).mean() - 0.5
    assert naive == pytest.approx(1.63 * 0.02, rel=0.1)
    assert abs(accuracy_of(report, ORACLE).mean() - 0.5) < 5 * 0.02 / np.sqrt(240)


def test_oracle_finds_the_entry_that_an_instance_needs():
    """Where one entry is really better, the oracle has all of its gain, and each instance has its own."""
    best = np.arange(24) % 12
    accuracies = 0.5 + 0.01 * np.random.default_rng(1).normal(size=(24, 2, 12))
    accuracies[np.arange(24), :, best] += 0.3
    report = with_oracle(make_report(accuracies), ENTRIES)
    for run in report.of(ORACLE):
        assert run.actions[0] == ENTRIES[best[int(run.instance[1:])]]


def test_oracle_chooses_by_the_mean_of_all_other_replicates():
    """By hand: in each replicate the entry that the other two like best, though another one wins there."""
    accuracies = np.array([[[0.9, 0.1], [0.2, 0.6], [0.3, 0.4]]])
    report = with_oracle(make_report(accuracies, ENTRIES[:2]), ENTRIES[:2])
    # Others' means: replicate 0: .25 to .5; replicate 1: .6 to .25; replicate 2: .55 to .35.
    assert accuracy_of(report, ORACLE).tolist() == [0.1, 0.2, 0.3]


def test_oracle_of_one_chooses_by_the_next_replicate_alone():
    """By hand: replicate 1 chooses for 0, 2 for 1, and 0 for 2."""
    accuracies = np.array([[[0.9, 0.1], [0.2, 0.6], [0.3, 0.4]]])
    report = with_oracle(make_report(accuracies, ENTRIES[:2]), ENTRIES[:2])
    assert accuracy_of(report, ORACLE_OF_ONE).tolist() == [0.1, 0.6, 0.3]


def test_an_oracle_that_has_seen_more_is_better():
    """Entries that differ by as much as trainings do: each training seen tells more of the best of them."""
    generator = np.random.default_rng(2)
    worth = 0.02 * generator.normal(size=(200, 1, 6))
    report = make_report(0.5 + worth + 0.02 * generator.normal(size=(200, 6, 6)), ENTRIES[:6])
    gains = []
    for seen in (1, 2, 5):
        chosen = best_in_other_replicates(report, ENTRIES[:6], seen=seen)
        oracle = report.copied(ORACLE, lambda run, chosen=chosen: chosen[run.instance, run.replicate])
        gains.append(accuracy_of(oracle, ORACLE).mean())
    assert gains[0] < gains[1] < gains[2] < 0.5 + worth.max(2).mean()


def test_oracle_of_one_replicate_is_an_error():
    """It would be the naive one."""
    with pytest.raises(InputError, match="needs `replicates` of at least 2"):
        with_oracle(make_report(np.zeros((3, 1, 12))), ENTRIES)


def test_oracle_looks_at_fixed_entries_only():
    """A learned agent among the columns must not become part of the hindsight that it is judged by."""
    accuracies = np.full((3, 2, 3), 0.5)
    accuracies[:, :, 2] = 0.9
    report = with_oracle(make_report(accuracies, ("none", "cutmix", "learned")), ("none", "cutmix"))
    assert set(accuracy_of(report, ORACLE)) == {0.5}
