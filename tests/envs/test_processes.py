"""Slots divided among processes do what they do in one."""

from __future__ import annotations

import pytest
import torch

from rlmix.envs.pool import Pool
from rlmix.envs.processes import ProcessPool
from rlmix.envs.reference import CACHE_VARIABLE
from rlmix.errors import EnvError
from rlmix.policy.codec import catalogue

ENTRIES = catalogue("cheap")
SEEDS = [3, 4, 5, 6, 7]


@pytest.fixture
def divided(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    pool = ProcessPool(2, tiny, seeds=SEEDS, catalogue=ENTRIES)
    yield pool
    pool.close()


def test_two_processes_do_what_one_does(tiny, divided):
    """A training of an agent must not depend on how many cores a machine has."""
    whole = Pool(tiny, seeds=SEEDS, catalogue=ENTRIES)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        assert torch.equal(divided.reset(), whole.reset())
        assert divided.slots == whole.slots
        assert divided.wave == whole.wave
        done = False
        while not done:
            actions = torch.randint(len(ENTRIES), (5,), generator=generator)
            expected = whole.step(actions)
            observations, rewards, done, info = divided.step(actions)
            assert torch.equal(observations, expected[0])
            assert torch.equal(rewards, expected[1])
            assert done == expected[2]
            assert divided.decision == whole.decision
            assert set(info) == set(expected[3])
            for name, value in expected[3].items():
                assert torch.equal(info[name], value) if isinstance(value, torch.Tensor) else info[name] == value
    divided.seed([9, 8, 7, 6, 5], 3)
    whole.seed([9, 8, 7, 6, 5], 3)
    assert torch.equal(divided.reset(), whole.reset())


def test_mistakes_are_raised_where_they_are_made_and_the_pool_lives_on(tiny, divided):
    """An error in another process must not end as a broken pipe."""
    with pytest.raises(EnvError, match="has no instance `lon-1`. Did you mean `long-1`"):
        divided.reset(instances=["lon-1", None, None, None, None])
    with pytest.raises(EnvError, match="one for each of 5 slots, got 2"):
        divided.reset(instances=[None, None])
    with pytest.raises(EnvError, match="one for each of 5 slots, got 1"):
        divided.seed([1])
    divided.reset()
    with pytest.raises(EnvError, match="one for each of 5 slots, got shape"):
        divided.step([0, 0])
    with pytest.raises(EnvError, match=r"must be in \[0, 5\)"):
        divided.step([0, 0, 0, 0, 9])
    with pytest.raises(EnvError, match="`processes` must be at least 1, got 0"):
        ProcessPool(0, tiny, seeds=SEEDS, catalogue=ENTRIES)


def test_a_process_that_dies_is_named(divided):
    """Out of memory, the system kills without a word."""
    divided.reset()
    divided._workers[1][0].kill()
    with pytest.raises(EnvError, match="ended with exit code -9. Was it out of memory"):
        divided.step([0] * 5)
    with pytest.raises(EnvError, match="have ended"):
        divided.step([0] * 5)
