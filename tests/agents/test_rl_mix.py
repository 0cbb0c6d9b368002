"""The RL-Mix agent beside random thresholds, on very short trainings of digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlmix.agents.rl_mix import RLMixConfig, train_rlmix
from rlmix.envs.instances import Instance
from rlmix.envs.rl_mix import RLMixEnv
from rlmix.errors import ConfigError, EnvError

INSTANCE = Instance(
    id="short", data="digits", seed=1, train_size=100, noise=0.2, model="mlp", batch_size=16, total_steps=20,
    learning_rate=0.1,
)  # fmt: skip


def config(**changes):
    return RLMixConfig(**{"trainings": 3, "rollout": 16, "epochs": 2, **changes})


@pytest.fixture(scope="module")
def result():
    return train_rlmix(INSTANCE, config())


def test_each_training_of_the_agent_has_its_pair(result):
    """Trainings that differ in more than their thresholds say little about thresholds."""
    for part in (result.agent, result.uniform):
        assert len(part.accuracy) == len(part.score) == len(part.reward) == 3
        assert all(0.1 < value <= 1.0 for value in part.accuracy)
        assert all(value > accuracy for value, accuracy in zip(part.score, part.accuracy, strict=True))
        assert all(0.2 < value < 1.0 for value in part.reward)
    assert result.agent.reward != result.uniform.reward


def test_random_thresholds_are_those_of_the_environment(result):
    """Played here by hand."""
    env = RLMixEnv(INSTANCE)
    env.action_space.seed(0)
    for training in range(3):
        env.reset(seed=0 if training == 0 else None)
        rewards, terminated = [], False
        while not terminated:
            _, reward, terminated, _, info = env.step(env.action_space.sample())
            rewards.append(reward)
        assert info["final_acc"] == result.uniform.accuracy[training]
        assert info["score"] == result.uniform.score[training]
        assert np.mean(rewards) == pytest.approx(result.uniform.reward[training])


def test_one_seed_gives_one_result_and_leaves_the_random_states(result):
    """stable-baselines3 seeds what belongs to the caller."""
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    assert train_rlmix(INSTANCE, config()) == result
    assert torch.equal(torch.rand(1), expected)
    other = train_rlmix(INSTANCE, config(seed=1))
    assert other.agent != result.agent
    assert other.uniform != result.uniform


def test_only_what_the_agent_learns_depends_on_how_it_learns(result):
    """Random thresholds are one bar for all agents; as published, episodes are epochs, and one training is all."""
    published = train_rlmix(INSTANCE, config(trainings=1, persistent=True, rollout=8))
    assert published.uniform.accuracy == result.uniform.accuracy[:1]
    assert published.agent.reward != result.agent.reward[:1]


def test_mistakes_are_named():
    """Each mistake must be named where it is made."""
    with pytest.raises(ConfigError, match="`trainings` and `epochs` must be at least 1, got 0 and 10"):
        RLMixConfig(trainings=0)
    with pytest.raises(ConfigError, match="`rollout` must be a multiple of 4 and at least 8, got 6"):
        RLMixConfig(rollout=6)
    with pytest.raises(ConfigError, match="got 0.0, 0.99 and 0"):
        RLMixConfig(learning_rate=0.0)
    with pytest.raises(EnvError, match="`grid` must be in"):
        train_rlmix(INSTANCE, config(grid=20))
