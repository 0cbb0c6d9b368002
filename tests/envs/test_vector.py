"""The vector form: the single environments side by side, in Gymnasium's conventions."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rlmix.envs.mix_training import MixTrainingEnv
from rlmix.envs.vector import MixVectorEnv
from rlmix.errors import EnvError

NAME = "rlmix.envs:rlmix/MixTraining-v0"


@pytest.fixture
def env(tiny):
    return MixVectorEnv(3, instances=tiny, catalogue="cheap")


def actions_of(decision):
    return np.array([decision, (decision + 1) % 5, 4])


def test_slot_i_is_the_single_environment_with_seed_s_plus_i(env, tiny):
    """A policy evaluated on one form must meet in the other what it was trained on; over two episodes, bit for bit."""
    singles = [MixTrainingEnv(instances=tiny, catalogue="cheap") for _ in range(3)]
    rows, infos = env.reset(seed=11)
    alone = [single.reset(seed=11 + slot) for slot, single in enumerate(singles)]
    assert np.array_equal(rows, np.stack([row for row, _ in alone]))
    assert infos["instance"].tolist() == [info["instance"] for _, info in alone]
    for decision in range(8):
        actions = actions_of(decision % 4)
        rows, rewards, ended, cut, infos = env.step(actions)
        alone = [single.step(action) for single, action in zip(singles, actions, strict=True)]
        assert rewards.tolist() == [step[1] for step in alone]
        assert ended.tolist() == [step[2] for step in alone]
        assert not cut.any()
        if decision % 4 == 3:
            assert np.array_equal(np.stack(infos["final_obs"]), np.stack([step[0] for step in alone]))
            assert infos["final_info"]["score"].tolist() == [step[4]["score"] for step in alone]
            assert infos["final_info"]["decisions"][2] == ("uniform-cheap",) * 4
            alone = [single.reset() for single in singles]
        assert np.array_equal(rows, np.stack([step[0] for step in alone]))
        assert infos["instance"].tolist() == [step[-1]["instance"] for step in alone]


def test_it_is_made_without_arguments_and_without_a_warning():
    """`make_vec` warns of environments that do not say how they reset themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(NAME, num_envs=3)
        rows, _ = env.reset(seed=0)
    assert isinstance(env.unwrapped, MixVectorEnv)
    assert rows in env.observation_space
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.single_action_space.n == 11
    rows, rewards, ended, cut, _ = env.step(env.action_space.sample())
    assert rows.shape == (3, len(env.unwrapped.observation_names))
    assert (rewards.shape, ended.dtype, cut.dtype) == ((3,), np.bool_, np.bool_)


def test_it_can_be_made_of_single_environments_too(tiny):
    """Wrappers for single environments need that form."""
    env = gymnasium.make_vec(NAME, num_envs=2, vectorization_mode="sync", instances=tiny, catalogue="cheap")
    rows, _ = env.reset(seed=4)
    other, _ = MixVectorEnv(2, instances=tiny, catalogue="cheap").reset(seed=4)
    assert np.array_equal(rows, other)
    env.close()


def test_seeds_may_be_one_for_each_slot_or_none(env):
    """Gymnasium allows all three forms."""
    first, _ = env.reset(seed=[4, 7, 9])
    again, _ = env.reset(seed=[4, 7, 9])
    assert np.array_equal(first, again)
    later, _ = env.reset()
    assert not np.array_equal(later, again)
    with pytest.raises(EnvError, match="one for each of 1 slots, got 3"):
        env.reset(seed=[4])


def test_unseeded_vectors_differ(tiny):
    """Two runs without a seed must not be the same run."""
    rows = [MixVectorEnv(2, instances=tiny, catalogue="cheap").reset()[0] for _ in range(3)]
    assert len({row.tobytes() for row in rows}) > 1


def test_options_name_instances_for_all_or_for_each(env):
    """A paired comparison gives all slots the same problem."""
    assert env.reset(seed=0, options={"instance": "long-1"})[1]["instance"].tolist() == ["long-1"] * 3
    _, infos = env.reset(seed=0, options={"instance": ["long-1", None, "short-0"]})
    assert infos["instance"][[0, 2]].tolist() == ["long-1", "short-0"]
    with pytest.raises(EnvError, match="one for each of 3 slots, got 1"):
        env.reset(options={"instance": ["long-1"]})
    with pytest.raises(EnvError, match="no option `reset_mask`"):
        env.reset(options={"reset_mask": np.ones(3, dtype=bool)})


def test_mistakes_are_named(env):
    """Each mistake must be named where it is made."""
    with pytest.raises(EnvError, match="Call `reset` first"):
        env.step(actions_of(0))
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"shape \(3,\), got int64 of shape \(2,\)"):
        env.step(np.array([0, 1]))
    with pytest.raises(EnvError, match="`num_envs` must be at least 1, got 0"):
        MixVectorEnv(0)


def test_observations_of_earlier_steps_stay_as_they_were(env):
    """A buffer that keeps references would otherwise hold the same row everywhere."""
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(actions_of(0))
    assert np.array_equal(first, kept)
