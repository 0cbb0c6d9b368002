"""Vine advantages: values by hand, no bias, and a wave that is not disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from rlmix._files import equal_trees
from rlmix.agents.checkpoint import borrowed_randomness
from rlmix.agents.ppo import PPOConfig, train_ppo
from rlmix.agents.vine import Vine
from rlmix.envs.instances import Family, InstanceSet, Recipe
from rlmix.envs.sb3 import MixVecEnv
from rlmix.errors import ConfigError

HORIZON, ACTORS = 4, 3


@pytest.fixture(scope="module")
def tiny() -> InstanceSet:
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate("train", 4)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Keep the references out of the user's cache."""
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path / "cache"))


class Copies(BaseCallback):
    """Keeps what a wave's buffer holds."""

    def __init__(self):
        super().__init__()
        self.waves = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("observations", "actions", "rewards", "advantages", "returns", "values")
        self.waves.append({name: torch.as_tensor(getattr(buffer, name)).clone() for name in names})


class CountingPool:
    """Trainings whose reward is the number of 1s chosen, with forks that remember what was chosen before."""

    def __init__(self, sums, decision=0):
        self.sums, self.decision = sums, decision

    def fork(self, rows, *, rekey):
        assert rekey
        return CountingPool(self.sums[rows].clone(), self.decision)

    def step(self, actions):
        self.sums = self.sums + (actions.float() if isinstance(actions, torch.Tensor) else torch.as_tensor(actions))
        self.decision += 1
        done = self.decision == HORIZON
        reward = self.sums if done else torch.zeros_like(self.sums)
        return torch.full((len(self.sums), 1), float(self.decision)), reward, done, {}


class Sampled:
    """A policy that chooses 1 with probability 0.3."""

    def get_distribution(self, observations):
        return torch.distributions.Bernoulli(torch.full((len(observations),), 0.3))


class Model:
    policy = Sampled()
    logger = None


def test_values_are_those_of_the_policy_from_here_on():
    """What was reached plus 0.3 a decision to come; five standard errors on 4 values: false alarms below 3e-6."""
    forks, pool = 4000, CountingPool(torch.tensor([1.0, 0.0]), decision=1)
    vine = Vine(pool, forks)
    vine.model = Model()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        early = vine._value(np.ones((2, 1), np.float32))
        pool.step(np.array([1.0, 0.0]))
        late = vine._value(np.ones((2, 1), np.float32))
    assert pool.decision == 2
    for found, left, reached in ((early, 3, (1.0, 0.0)), (late, 2, (2.0, 0.0))):
        error = 5 * (left * 0.3 * 0.7 / forks) ** 0.5
        assert found.tolist() == pytest.approx([one + 0.3 * left for one in reached], abs=error)


def run(tiny, forks, waves=1, kind="discrete"):
    env = MixVecEnv(ACTORS, instances=tiny, catalogue="cheap", action=kind)
    with borrowed_randomness():
        model = PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=ACTORS * HORIZON, gamma=1.0, seed=1, device="cpu")
        copies = Copies()
        vines = [Vine(env.pool, forks)] if forks else []
        model.learn(waves * ACTORS * HORIZON, callback=[*vines, copies])
    return copies.waves


def test_advantages_telescope_to_the_return_and_targets_are_the_values(tiny):
    """The sum over a training is its return minus the value of its beginning, whatever the forks said between."""
    for wave in run(tiny, 2, waves=2):
        total = wave["rewards"][-1] - wave["returns"][0]
        torch.testing.assert_close(wave["advantages"].sum(0), total, atol=1e-5, rtol=0)
        assert (wave["returns"].abs() <= 2.0).all()
        assert not torch.equal(wave["returns"], wave["values"])


def test_a_wave_is_not_disturbed_by_its_forks(tiny, monkeypatch):
    """Given the same actions, observations and rewards must be the same bit for bit."""
    monkeypatch.setattr(Vine, "_value", lambda self, seen: _quietly(original, self, seen))
    plain, forked = run(tiny, 0)[0], run(tiny, 1)[0]
    for name in ("observations", "actions", "rewards", "values"):
        assert torch.equal(plain[name], forked[name]), name
    assert not torch.equal(plain["advantages"], forked["advantages"])


original = Vine._value


def _quietly(value, self, seen):
    """Return what `value` does, with the global random state as it was."""
    with torch.random.fork_rng():
        return value(self, seen)


def test_an_agent_is_trained_with_forks_and_resumed_bit_for_bit(tiny, tmp_path):
    """The forks' random numbers belong to the run too."""

    def config(name):
        return PPOConfig(
            action="hybrid", catalogue="cheap", actors=ACTORS, timesteps=2 * ACTORS * HORIZON, batch_size=6, forks=1,
            out=str(tmp_path / name),
        )  # fmt: skip

    def stop(progress):
        if progress.decisions == ACTORS * (HORIZON + 1):
            raise KeyboardInterrupt

    first = train_ppo(config("a"), instances=tiny, validation=tiny)
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config("b"), instances=tiny, validation=tiny, progress=stop)
    second = train_ppo(config("b"), instances=tiny, validation=tiny, resume=True)
    trees = [{str(n): pair[0] for n, pair in enumerate(policy.network.actor)} for policy in (first, second)]
    assert equal_trees(*trees)
    assert dict(first.card) == dict(second.card)
    with pytest.raises(ConfigError, match="`forks` must be at least 0, got -1"):
        PPOConfig(forks=-1)
