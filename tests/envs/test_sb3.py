"""The environment of stable-baselines3: the vector form in its conventions, and PPO on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from rlmix.envs.sb3 import MixVecEnv
from rlmix.envs.vector import MixVectorEnv
from rlmix.errors import EnvError


@pytest.fixture
def env(tiny):
    return MixVecEnv(3, instances=tiny, catalogue="cheap")


def wave(env, entry=3):
    """Play one wave and return its observations and the last step's information."""
    rows, done = [], np.zeros(3, dtype=bool)
    while not done.any():
        row, rewards, done, infos = env.step(np.full(env.num_envs, entry))
        rows.append(row)
    return np.stack(rows), rewards, infos


def test_it_is_the_vector_form(env, tiny):
    """Agents trained here are evaluated there."""
    other = MixVectorEnv(3, instances=tiny, catalogue="cheap")
    env.seed(6)
    rows, (expected, _) = env.reset(), other.reset(seed=6)
    assert np.array_equal(rows, expected)
    for decision in range(5):
        actions = np.array([decision, 4, 0])
        rows, rewards, done, infos = env.step(actions)
        expected = other.step(actions)
        assert np.array_equal(rows, expected[0])
        assert rewards.tolist() == expected[1].tolist()
        assert done.tolist() == expected[2].tolist()
        if decision == 3:
            finals = np.stack([info["terminal_observation"] for info in infos])
            assert np.array_equal(finals, np.stack(expected[4]["final_obs"]))


def test_the_end_is_not_a_truncation_and_says_what_was_reached(env):
    """SB3 adds the value of the last observation wherever `TimeLimit.truncated` is set."""
    env.seed(1)
    env.reset()
    assert [set(info) for info in env.reset_infos] == [{"instance", "step"}] * 3
    _, rewards, infos = wave(env)
    for info, reward in zip(infos, rewards.tolist(), strict=True):
        assert info["TimeLimit.truncated"] is False
        assert info["episode"] == {"r": reward, "l": 4}
        assert info["decisions"] == ("cutmix-1",) * 4
        assert {"score", "score_uniform", "score_norm", "final_acc", "ts_nll", "is_success"} <= set(info)


def test_seeding_restarts_at_the_first_wave_and_a_resumed_run_goes_on_at_its_own(env, tiny):
    """PPO seeds its environment when it is made; a resumed one must not begin at wave 0 again."""
    env.seed(5)
    firsts = [env.reset()]
    for _ in range(2):
        firsts.append(wave(env)[0][-1])
    env.seed(5)
    assert np.array_equal(env.reset(), firsts[0])
    resumed = MixVecEnv(3, instances=tiny, catalogue="cheap", first_wave=2)
    resumed.seed(5)
    assert np.array_equal(resumed.reset(), firsts[2])
    env.start_at(1)
    assert np.array_equal(env.reset(), firsts[1])


def test_an_unseeded_environment_does_not_use_global_numbers(env):
    """A training script's own numbers must not change by opening an environment."""
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    env.reset()
    wave(env)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_options_name_the_instances_of_one_reset(env):
    """Options hold for the next reset alone."""
    env.seed(0)
    env.set_options({"instance": "long-0"})
    env.reset()
    assert [info["instance"] for info in env.reset_infos] == ["long-0"] * 3
    env.reset()
    assert {info["instance"] for info in env.reset_infos} != {"long-0"}


def test_ppo_learns_on_it_and_gives_the_same_twice(tiny):
    """The whole way of stable-baselines3, with its monitor and its evaluation."""
    results = []
    for _ in range(2):
        env = VecMonitor(MixVecEnv(4, instances=tiny, catalogue="cheap"), info_keywords=("final_acc", "score_norm"))
        model = PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=2, gamma=1.0, seed=2, device="cpu")
        model.learn(32)
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
        assert len(model.ep_info_buffer) == 8
        assert {"r", "l", "final_acc", "score_norm"} <= set(model.ep_info_buffer[0])
    assert torch.equal(*results)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=4)
    assert -2.0 <= mean <= 2.0


def test_attributes_are_common_and_slots_have_no_methods(env):
    """SB3 asks for attributes by slot; answering with something wrong would be worse than refusing."""
    assert env.get_attr("render_mode") == [None, None, None]
    assert env.get_attr("num_envs", 1) == [3]
    assert not env.has_attr("action_masks")
    assert env.env_is_wrapped(VecMonitor) == [False, False, False]
    assert env.get_images() == [None, None, None]
    with pytest.raises(EnvError, match="`speed` cannot be set"):
        env.set_attr("speed", 1)
    with pytest.raises(EnvError, match="`render` cannot be called for one slot"):
        env.env_method("render")
    env.close()
