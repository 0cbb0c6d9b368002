"""Head-room: the oracle by hand, and selectors on tables whose best entry follows from what they are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlmix.agents.headroom import BEST_FIXED, INFORMED, ORACLE, SELECTOR, features, headroom, watch
from rlmix.envs.block import Library
from rlmix.envs.instances import InstanceSet, digits_set
from rlmix.envs.reference import Table
from rlmix.errors import InputError
from rlmix.policy import signals
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
LIBRARY = Library(CHEAP, None, "cpu")


def table(instances: InstanceSet, best: list[int], spread: float = 0.0) -> Table:
    """Return scores in which one entry of each instance is better than the others by 0.1, but for noise."""
    scores = 0.5 + 0.1 * torch.nn.functional.one_hot(torch.tensor(best), len(CHEAP)).double()
    noise = spread * torch.randn(len(best), len(CHEAP), 2, generator=torch.Generator().manual_seed(len(best))).double()
    both = scores.unsqueeze(2) + noise
    return Table(instances.ids, CHEAP.names, both, both - 0.2)


def judged(rule, *, spread=0.0, limit=60):
    known, other = digits_set("train", limit), digits_set("validation", 48)
    tables = [table(part, [rule(one) for one in part.instances], spread) for part in (known, other)]
    return {row.name: row for row in headroom(tables[0], known, tables[1], other, LIBRARY)}, other


def test_a_selector_finds_a_rule_in_what_is_known_and_only_the_informed_one_a_rule_in_the_noise():
    """Otherwise nobody could tell whether the noise of labels has to be noticed during a training."""
    by_size, _ = judged(lambda one: 3 if one.train_size < 300 else 0, spread=0.02)
    assert by_size[SELECTOR].to_uniform.estimate == pytest.approx(0.1, abs=0.012)
    by_noise, _ = judged(lambda one: 3 if one.noise > 0.2 else 0, spread=0.02)
    assert by_noise[INFORMED].to_uniform.estimate == pytest.approx(0.1, abs=0.012)
    assert by_noise[SELECTOR].to_uniform.estimate < 0.08


def test_the_best_fixed_entry_is_chosen_on_the_known_instances():
    """Chosen on those that it is judged on, it would profit from their luck."""
    known, other = digits_set("train", 8), digits_set("validation", 8)
    rows = headroom(table(known, [1] * 8), known, table(other, [2] * 8), other, LIBRARY)
    found = {row.name: row for row in rows}
    assert found[BEST_FIXED].entries == (0, 8, 0, 0, 0)
    assert found[BEST_FIXED].to_uniform.estimate == pytest.approx(0.0)
    assert found[BEST_FIXED].accuracy == pytest.approx(0.3)


def test_the_oracle_chooses_by_the_other_replicate():
    """By hand: each replicate's best entry is a bad one in the other, so knowing one misleads about the other."""
    known = digits_set("train", 2)
    scores = torch.full((2, 5, 2), 0.5).double()
    scores[:, 1, 0], scores[:, 1, 1] = 0.9, 0.1
    scores[:, 2, 0], scores[:, 2, 1] = 0.2, 0.8
    mixed = Table(known.ids, CHEAP.names, scores, scores)
    found = {row.name: row for row in headroom(mixed, known, mixed, known, LIBRARY)}
    # Replicate 0 takes entry 2 (0.8 in replicate 1), where it has 0.2; replicate 1 takes entry 1, where it has 0.1.
    assert found[ORACLE].accuracy == pytest.approx((0.2 + 0.1) / 2)


def test_selectors_are_told_what_a_user_knows():
    """A rate ten times as high is log 10 more in one place; the noise of labels is for the informed one alone."""
    one = digits_set("train", 1).instances[0]
    pair = [one, replace(one, learning_rate=10 * one.learning_rate, noise=one.noise / 2)]
    plain, informed = features(pair, LIBRARY, informed=False), features(pair, LIBRARY, informed=True)
    np.testing.assert_allclose(np.sort(np.abs(plain[1] - plain[0]))[::-1][:2], [np.log(10), 0.0], atol=1e-9)
    assert informed.shape[1] == plain.shape[1] + 3
    assert informed[1, plain.shape[1]] == pytest.approx(one.noise / 2)


def test_a_selector_that_watches_finds_what_shows_in_a_training_only():
    """A rule in the third observation is found from there on, and not before."""
    known, other = digits_set("train", 60), digits_set("validation", 48)
    parts, tables = [], []
    for number, part in enumerate((known, other)):
        seen = torch.rand(len(part), 4, 3, generator=torch.Generator().manual_seed(number))
        parts.append(seen)
        tables.append(table(part, [3 if high else 0 for high in (seen[:, 2, 1] > 0.5).tolist()], 0.02))
    rows = headroom(tables[0], known, tables[1], other, LIBRARY, watched=(parts[0], parts[1]))
    found = {row.name: 100 * row.to_uniform.estimate for row in rows if "watched" in row.name}
    assert list(found) == [f"selector, {decision} of 4 watched" for decision in (0, 1, 2)]
    assert max(found["selector, 0 of 4 watched"], found["selector, 1 of 4 watched"]) < 8
    assert found["selector, 2 of 4 watched"] > 9
    with pytest.raises(InputError, match=r"observations \[n, H, D\] of 60 instances, got shape \[48, 4, 3\]"):
        headroom(tables[0], known, tables[1], other, LIBRARY, watched=(parts[1], parts[1]))


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_watched_is_each_instances_own_training(processes):
    """In the set's order, though trainings of one kind run together; and the same in any number of processes."""
    instances = digits_set("train", 5)
    seen = watch(instances, CHEAP, seed=3, processes=processes)
    assert seen.shape == (5, instances.horizon, len(signals.names(CHEAP)))
    sizes = torch.tensor([one.train_size for one in instances.instances], dtype=torch.float32)
    shown = 10 ** (1.5 * seen[:, 0, signals.names(CHEAP).index("context/n")] + 3)
    torch.testing.assert_close(shown, sizes, rtol=1e-3, atol=0)
    torch.testing.assert_close(seen, watch(instances, CHEAP, seed=3), atol=0, rtol=0)


def test_tables_of_other_entries_are_refused():
    """Entry 3 of one is not entry 3 of the other."""
    known = digits_set("train", 4)
    own = table(known, [0, 1, 2, 3])
    with pytest.raises(InputError, match="the tables have different entries"):
        headroom(replace(own, entries=CHEAP.names[::-1]), known, own, known, LIBRARY)
