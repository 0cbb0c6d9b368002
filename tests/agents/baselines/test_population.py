"""Population-based search: who replaces whom, what is tried next, and schedules that were really trained."""

from __future__ import annotations

import pytest
import torch

from rlmix.agents.baselines.population import (
    PBTConfig,
    Surrogate,
    resampled,
    schedule_of,
    search_schedule,
    survivors,
)
from rlmix.agents.baselines.schedules import ScheduleAgent
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.errors import ConfigError
from rlmix.ops import rng
from rlmix.policy.codec import catalogue

HORIZON = 4
CHEAP = catalogue("cheap")
ARMS = len(CHEAP)


def tiny():
    family = Family(data="digits", total_steps={16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate("train", 2)


def test_the_worst_fifth_takes_the_place_of_the_best():
    """Exploit: a sign error would copy the worst over the best."""
    scores = torch.tensor([5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 8.0, 4.0, 0.0, 6.0])
    for key in range(20):
        parents = survivors(scores, 0.2, key)
        moved = (parents != torch.arange(10)).nonzero().flatten().tolist()
        assert sorted(moved) == [1, 8]
        assert set(parents[[1, 8]].tolist()) <= {2, 6}
    both = {survivors(scores, 0.2, key)[1].item() for key in range(20)}
    assert both == {2, 6}


def test_who_moved_draws_anew_and_some_others():
    """Explore: a copy that goes on with its parent's entry is the parent, bit for bit, with equal keys.

    Of 4,000 others 0.25 draw, and 4/5 of them another entry: 0.2 within 4.5 deviations, which fails once in 100,000.
    """
    entries = torch.zeros(5000, dtype=torch.int64)
    moved = torch.arange(5000) < 1000
    following = resampled(entries, moved, ARMS, 0.25, key=3)
    assert abs(float((following[:1000] != 0).double().mean()) - 0.8) < 4.5 * (0.16 / 1000) ** 0.5
    assert abs(float((following[1000:] != 0).double().mean()) - 0.2) < 4.5 * (0.16 / 4000) ** 0.5
    assert torch.equal(resampled(entries, moved, ARMS, 0.0, key=3)[1000:], entries[1000:])


def test_a_schedule_of_entries_by_hand():
    """Equal neighbours are one part; the parts begin at their decisions."""
    agent = schedule_of([1, 1, 0, 3], CHEAP)
    assert agent == ScheduleAgent(((0.0, CHEAP.names[1]), (0.5, CHEAP.names[0]), (0.75, CHEAP.names[3])), CHEAP)


def test_pb2_prefers_what_brought_most_and_spreads_a_batch():
    """With much evidence the best entry gets the most members, without any evidence all get as many."""
    config = PBTConfig(explore="pb2", optimism=1.0, forgetting=0.1)
    model = Surrogate(ARMS, config)
    counts = torch.bincount(model.choose(0, 20), minlength=ARMS)
    assert counts.tolist() == [4] * ARMS
    entries = torch.arange(ARMS).repeat(8)
    for decision in range(3):
        noise = 0.1 * rng.normal(torch.tensor([decision]), 100, (len(entries),))[0].double()
        model.add(decision, entries, (entries == 2).double() + noise)
    chosen = torch.bincount(model.choose(3, 20), minlength=ARMS)
    assert chosen.argmax() == 2


def test_pb2_posterior_by_hand():
    """One observation of variance 1: the mean is k/2 of it, the variance 1 - k^2/2, with k falling by time."""
    model = Surrogate(2, PBTConfig(explore="pb2", forgetting=0.19))
    model.add(0, torch.tensor([0, 1]), torch.tensor([1.0, -1.0], dtype=torch.float64))
    means, deviations = model.posterior(2)
    # Standardised they stay 1 and -1; k is 0.81 for the same entry two decisions later, 0.81 * 0.2 for the other.
    seen = torch.tensor([[2.0, 0.2], [0.2, 2.0]], dtype=torch.float64)
    across = 0.81 * torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(seen)
    torch.testing.assert_close(means, across @ inverse @ torch.tensor([1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(deviations, (1 - torch.diagonal(across @ inverse @ across.T)).sqrt())


@pytest.mark.parametrize("explore", ["pbt", "pb2"])
def test_every_members_lineage_gives_its_score_again(explore):
    """A copy has its parent's classifier and its parent's past: both, or its schedule is not what made its score.

    Replayed from the beginning with the key of some first ancestor, the actions must reach the score bit for bit.
    """
    instances, count = tiny(), 6
    instance, config = instances.instances[0], PBTConfig(members=count, explore=explore, seed=1)
    found = search_schedule(instance, instances, config, catalogue=CHEAP)
    assert found.actions.shape == found.scores.shape == (count, HORIZON)
    keys = [rng.derive(1, rng.words(instance.id), member) for member in range(count)]
    pool = Pool(instances, seeds=[0], catalogue=CHEAP, reward=None)
    # Every member's actions from every first ancestor.
    pool.begin([instance] * count**2, keys * count)
    for decision in range(HORIZON):
        pool.step(found.actions[:, decision].repeat_interleave(count))
    replayed = pool.scores().score.view(count, count)
    assert (replayed == found.scores[:, -1:]).any(1).all()
    ancestors = (replayed == found.scores[:, -1:]).int().argmax(1)
    assert len(set(ancestors.tolist())) < count
    best = int(found.scores[:, -1].argmax())
    assert found.score == found.scores[best, -1]
    assert found.schedule == schedule_of(found.actions[best].tolist(), CHEAP)


def test_a_search_repeats_itself():
    """A baseline whose schedule cannot be had again cannot be compared with."""
    instances = tiny()
    first, second, other = (
        search_schedule(instances.instances[0], instances, PBTConfig(members=5, seed=seed), catalogue=CHEAP)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.scores, second.scores)
    assert not torch.equal(first.actions, other.actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 4}, "`members` must be at least 5.*got 4"),
        ({"replaced": 0.6}, r"`replaced` in \(0, 0.5\]"),
        ({"resampled": 1.5}, r"`resampled` must be in \[0, 1\]"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*63\), got -1"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    """A typo must not become a search that does nothing."""
    with pytest.raises(ConfigError, match=message):
        PBTConfig(**changes)
