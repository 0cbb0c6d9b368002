"""Environments whose actions set parameters: checkers, spaces, what is trained, snapshots, PPO."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from rlmix.envs.mix_training import MixTrainingEnv
from rlmix.envs.pool import Pool
from rlmix.envs.sb3 import MixVecEnv
from rlmix.envs.shell import action_space
from rlmix.envs.vector import MixVectorEnv
from rlmix.errors import CheckpointError, EnvError, InputError, UnknownNameError
from rlmix.policy.codec import catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.parametric import find_codec
from rlmix.policy.signals import names
from rlmix.policy.space import method_space

NAME = "rlmix.envs:rlmix/MixTraining-v0"
KINDS = ("discrete", "multidiscrete", "hybrid")
SPACES = {
    "discrete": gymnasium.spaces.Discrete(11),
    "multidiscrete": gymnasium.spaces.MultiDiscrete([8, 5]),
    "hybrid": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
}
HYBRID = find_codec("hybrid", "v0")


def actions_of(codec, *decisions):
    kind = np.int64 if codec.whole else np.float32
    return np.array([codec.encode(decision) for decision in decisions], kind)


def finished(pool, instances, keys, actions):
    """Train one wave with the same actions throughout; return the last observations and scores."""
    pool.begin(instances, keys)
    done = False
    while not done:
        observation, _, done, info = pool.step(actions)
    return observation, info


@pytest.mark.parametrize("kind", KINDS)
def test_both_checkers_pass_without_a_warning(tiny, kind):
    """A warning of a checker is a surprise for somebody's algorithm."""
    env = gymnasium.make(NAME, instances=tiny, action=kind)
    assert env.action_space == SPACES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_of_sb3(env)
        check_env_of_sb3(env.unwrapped)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_vector_forms_agree_and_slots_do_what_single_environments_do(tiny, kind):
    """Agents trained in one are evaluated in another."""
    arguments = {"instances": tiny, "action": kind, "catalogue": "cheap"}
    vector, sb3 = MixVectorEnv(3, **arguments), MixVecEnv(3, **arguments)
    singles = [MixTrainingEnv(**arguments) for _ in range(3)]
    assert vector.action_space.shape == (3, 2)
    sb3.seed(4)
    rows, (expected, _) = sb3.reset(), vector.reset(seed=4)
    alone = np.stack([env.reset(seed=4 + slot)[0] for slot, env in enumerate(singles)])
    assert np.array_equal(rows, expected)
    assert np.array_equal(rows, alone)
    vector.action_space.seed(0)
    for _ in range(3):
        actions = vector.action_space.sample()
        rows, _, _, infos = sb3.step(actions)
        expected = vector.step(actions)
        alone = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        assert np.array_equal(rows, expected[0])
        assert np.array_equal(rows, np.stack([one[0] for one in alone]))
        assert [info["decision"] for info in infos] == [one[4]["decision"] for one in alone]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_action_trains_what_its_decision_says(tiny, kind):
    """The way over the codec must end in the very training that the catalogue's entry gives."""
    codec = find_codec(kind, "v0")
    decisions = [
        Decision("none"), Decision("mixup", {"alpha": 0.1}), Decision("cutmix", {"alpha": 8.0}),
        Decision("rmix", {"threshold": 0.495}), Decision("rmix"), Decision("grafting", {"temperature": 4.0}),
        catalogue("v0").decisions[-1],
    ]  # fmt: skip
    plain = type(catalogue("v0"))({one.text: one for one in decisions})
    instances, keys = [tiny.find("long-1")] * len(decisions), list(range(30, 30 + len(decisions)))
    first = Pool(tiny, seeds=[0], catalogue=codec, reward=None, masks=False)
    second = Pool(tiny, seeds=[0], catalogue=plain, reward=None, masks=False)
    _, found = finished(first, instances, keys, actions_of(codec, *decisions))
    _, expected = finished(second, instances, keys, list(range(len(decisions))))
    assert torch.equal(found["score"], expected["score"])
    assert found["decisions"] == expected["decisions"]
    assert found["decisions"][1] == ("mixup(alpha=0.1)",) * 4
    for (_, one), (_, other) in zip(first._blocks, second._blocks, strict=True):
        for name, value in one.stack.parameters.items():
            assert torch.equal(value, other.stack.parameters[name])


def test_a_training_does_not_depend_on_the_parameters_of_its_neighbours(tiny):
    """Trainings of one method are drawn together, whatever their parameters."""
    pool = Pool(tiny, seeds=[0], catalogue=HYBRID, reward=None, masks=False)
    instances = [tiny.find(f"short-{slot % 4}") for slot in range(6)]
    actions = np.array([[-0.6, -0.9 + 0.3 * slot] for slot in range(6)], np.float32)
    together, info = finished(pool, instances, range(6), actions)
    for slot in range(6):
        alone, own = finished(pool, instances[slot : slot + 1], [slot], actions[slot : slot + 1])
        assert torch.equal(alone[0], together[slot])
        assert own["score"] == info["score"][slot]


def test_observations_remember_methods(tiny):
    """Memory by method: `last/METHOD`, and the share of each method so far."""
    env = MixTrainingEnv(instances=tiny, action="hybrid")
    space = method_space("v0")
    assert env.observation_names == names(space.catalogue)
    env.reset(seed=0)
    env.step(np.array(HYBRID.encode(Decision("mixup", {"alpha": 3.0})), np.float32))
    row = dict(zip(env.observation_names, env.step(np.array([0.99, 0.0], np.float32))[0].tolist(), strict=True))
    assert [name for name in space.names if row[f"last/{name}"]] == ["uniform"]
    assert row["used/mixup"] == pytest.approx((1 + 2 / 9) / 2)


def test_snapshots_and_forks_go_on_alike(tiny):
    """A fork given the same actions stays the same; a snapshot of other actions is refused."""
    pool = Pool(tiny, seeds=range(3), catalogue=HYBRID, reward=None)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    pool.reset()
    pool.step(actions[0])
    tree, child = pool.snapshot(), pool.fork([2, 0])
    ends = [pool.step(one) for one in actions[1:]]
    forked = [child.step(one[[2, 0]]) for one in actions[1:]]
    assert torch.equal(ends[-1][0][[2, 0]], forked[-1][0])
    assert forked[-1][3]["decisions"][1] == ends[-1][3]["decisions"][0]
    pool.restore(tree)
    assert torch.equal(pool.step(actions[1])[0], ends[0][0])
    other = Pool(tiny, seeds=range(3), catalogue=find_codec("multidiscrete", "v0"), reward=None)
    with pytest.raises(CheckpointError, match="the snapshot has `catalogue`"):
        other.restore(tree)


def test_the_reference_is_the_same_uniform_mixing(tiny):
    """Rewards of different kinds of actions must be comparable."""
    references = []
    for kind in KINDS:
        env = MixTrainingEnv(instances=tiny, action=kind, catalogue="cheap")
        env.reset(seed=0, options={"instance": "long-2"})
        action = np.zeros(env.action_space.shape, env.action_space.dtype)
        for _ in range(4):
            info = env.step(action)[4]
        references.append(info["score_uniform"])
    assert references[0] == references[1] == references[2]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_plain_ppo_runs_on_it(tiny, kind):
    """The whole way of stable-baselines3; a Gaussian on the hybrid space is poor, but must not fail."""
    env = MixVecEnv(4, instances=tiny, action=kind, catalogue="cheap")
    model = PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, gamma=1.0, seed=2, device="cpu").learn(16)
    assert model.num_timesteps == 16


@pytest.mark.parametrize(
    ("kind", "actions", "match"),
    [
        ("hybrid", [[0, 0]], "`actions` must be 1 numbers, shape \\(1, 2\\), got int64"),
        ("hybrid", [[0.0]], "got float64 of shape \\(1, 1\\)"),
        ("hybrid", [[0.0, 1.1]], r"out of range: `action` must be numbers in \[-1, 1\].* The entries are none, mixup"),
        ("hybrid", [[float("nan"), 0.0]], "out of range"),
        ("multidiscrete", [[0.0, 0.0]], "must be 1 whole numbers"),
        ("multidiscrete", [[0, 5]], r"out of range: `action` must be below \[8, 5\]"),
    ],
)
def test_actions_of_a_wrong_form_are_refused(tiny, kind, actions, match):
    """An action of another space must not train something else in silence."""
    pool = Pool(tiny, seeds=[0], catalogue=find_codec(kind, "v0"), reward=None)
    pool.reset()
    with pytest.raises(EnvError, match=match):
        pool.step(np.array(actions))
    assert pool.decision == 0


def test_mistaken_arguments_are_named(tiny):
    """A misspelt kind, or a catalogue where a space belongs."""
    with pytest.raises(InputError, match="`action` must be one of 'discrete', 'multidiscrete', 'hybrid', got 'hybird'"):
        MixTrainingEnv(instances=tiny, action="hybird")
    with pytest.raises(InputError, match='"hybrid" takes a MethodSpace'):
        MixVecEnv(2, instances=tiny, action="hybrid", catalogue=catalogue("cheap"))
    with pytest.raises(UnknownNameError, match="no method space `v1`"):
        MixVectorEnv(2, instances=tiny, action="multidiscrete", catalogue="v1")
    with pytest.raises(EnvError, match="no action space for a object"):
        action_space(object())
