"""The single environment: the two checkers, seeds, options, information, rendering."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from rlmix.envs.mix_training import MixTrainingEnv
from rlmix.errors import ConfigError, EnvError, UnknownNameError
from rlmix.policy.codec import catalogue
from rlmix.policy.signals import names

NAME = "rlmix.envs:rlmix/MixTraining-v0"


@pytest.fixture
def env(tiny):
    return MixTrainingEnv(instances=tiny, catalogue="cheap")


def played(env, actions, **options):
    """Play one training and return its observations, rewards and last information."""
    observation, info = env.reset(**options)
    rows, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        rows.append(observation)
        rewards.append(reward)
        assert not truncated
    assert terminated
    return np.stack(rows), rewards, info


def test_both_checkers_pass_without_a_warning(tiny):
    """A warning of a checker is a surprise for somebody's algorithm."""
    env = gymnasium.make(NAME, instances=tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_of_sb3(env)
        check_env_of_sb3(env.unwrapped)


def test_the_environment_is_made_without_arguments():
    """The shortest way into the library must work."""
    env = gymnasium.make(NAME)
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation in env.observation_space
    assert env.action_space.n == len(catalogue("v0"))
    assert info["instance"].startswith("digits-train-")
    assert env.unwrapped.observation_names == names(catalogue("v0"))


def test_an_episode_has_h_decisions_and_ends_terminated(env):
    """An end that is `truncated` would be valued past the end of the world."""
    rows, rewards, info = played(env, [0, 1, 2, 3], seed=3)
    assert rows.shape == (5, len(names(catalogue("cheap"))))
    assert rewards[:3] == [0.0, 0.0, 0.0]
    assert all(type(reward) is float for reward in rewards)
    assert rewards[3] == pytest.approx(info["score_norm"], abs=1e-6)
    assert np.abs(rows).max() <= 5.0


def test_information_is_complete_and_plain(env, tiny):
    """Monitors write it as it is: no tensors, no arrays."""
    info = env.reset(seed=1)[1]
    assert set(info) == {"instance", "step"}
    info = env.step(2)[4]
    assert info == {"instance": info["instance"], "step": info["step"], "decision": "mixup-1"}
    budget = tiny.find(info["instance"]).total_steps
    assert info["step"] == budget // 4
    for _ in range(3):
        info = env.step(3)[4]
    assert set(info) == {
        "instance", "step", "decision", "decisions", "score", "score_uniform", "score_norm", "final_acc", "ts_nll",
        "is_success",
    }  # fmt: skip
    assert info["decisions"] == ("mixup-1", "cutmix-1", "cutmix-1", "cutmix-1")
    assert type(info["is_success"]) is bool
    assert info["is_success"] == (info["score"] > info["score_uniform"])
    assert all(type(info[name]) is float for name in ("score", "score_uniform", "score_norm", "final_acc", "ts_nll"))


def test_seeds_repeat_a_sequence_and_no_seed_goes_on(env):
    """`reset()` without a seed must not play the same training for ever."""
    first = [played(env, [0] * 4, seed=5)[0], played(env, [0] * 4)[0]]
    again = [played(env, [0] * 4, seed=5)[0], played(env, [0] * 4)[0]]
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], first[1])


def test_an_environment_that_is_never_seeded_surprises(tiny):
    """Two unseeded environments side by side must not do the same work twice."""
    rows = [MixTrainingEnv(instances=tiny, catalogue="cheap").reset()[0] for _ in range(3)]
    assert len({row.tobytes() for row in rows}) > 1


def test_an_option_names_the_instance(env):
    """Looking at one problem must not need a set of one."""
    assert env.reset(seed=0, options={"instance": "long-2"})[1]["instance"] == "long-2"
    with pytest.raises(EnvError, match="no instance `long-7`. Did you mean"):
        env.reset(options={"instance": "long-7"})
    with pytest.raises(EnvError, match="there is no option `instances`. Did you mean `instance`"):
        env.reset(options={"instances": "long-2"})


def test_mistakes_are_named(env, tiny):
    """Each mistake must be named where it is made."""
    with pytest.raises(EnvError, match="Call `reset` first"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"must be in \[0, 5\), got \[5\]"):
        env.step(5)
    with pytest.raises(EnvError, match="got float64"):
        env.step(1.0)
    for _ in range(4):
        env.step(0)
    with pytest.raises(EnvError, match="the wave has ended"):
        env.step(0)
    with pytest.raises(EnvError, match="`render_mode` must be None or \"ansi\", got 'human'"):
        MixTrainingEnv(instances=tiny, render_mode="human")
    with pytest.raises(ConfigError, match="no instance set and no file `digts`"):
        MixTrainingEnv(instances="digts")
    with pytest.raises(UnknownNameError, match="no catalogue `v1`"):
        MixTrainingEnv(instances=tiny, catalogue="v1")


def test_a_recipe_file_is_an_instance_set(tmp_path):
    """Problems of one's own are a file, not code."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\nhorizon: 2\ncounts: {train: 2, validation: 1, heldout: 1}\n"
        "families:\n  - {data: digits, total_steps: {4: 1}, train_size: [50, 60], batch_size: 8}\n"
    )
    env = MixTrainingEnv(instances=path, catalogue="cheap", reward=None)
    assert env.reset(seed=0)[1]["instance"].startswith("own-train-")
    env.step(0)
    _, reward, terminated, _, info = env.step(0)
    assert terminated
    assert reward == 0.0
    assert "score" in info
    assert "score_uniform" not in info


def test_without_validation_no_observation_has_any(tiny):
    """Evaluation reports policies with and without."""
    env = MixTrainingEnv(instances=tiny, catalogue="cheap", with_validation=False, masks=False)
    row = dict(zip(env.observation_names, env.reset(seed=0)[0].tolist(), strict=True))
    assert (row["has/val"], row["has/model"]) == (0.0, 1.0)


def test_the_text_tells_of_the_training(tiny):
    """A person who watches wants to know what is trained, how far it is, and how it is mixed."""
    env = MixTrainingEnv(instances=tiny, catalogue="cheap", render_mode="ansi")
    with pytest.raises(EnvError, match="no training has begun"):
        env.render()
    env.reset(seed=0, options={"instance": "short-1"})
    assert env.render() == ("short-1: mlp on 100 images of digits, 20% wrong labels\nstep 0 of 8, decision 0 of 4\n")
    for _ in range(4):
        env.step(3)
    assert "step 8 of 8, decision 4 of 4\nmixed by cutmix-1\nscore " in env.render()
    env.close()
    env.close()


def test_rendering_without_a_mode_warns(env):
    """Gymnasium's convention."""
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
