"""PPO: the numbers by hand, a toy that it must learn, the same seed, and resuming bit for bit."""

from __future__ import annotations

import random  # noqa: TID251  (its state must come back)

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from rlmix._files import equal_trees, load_tree
from rlmix.agents.callbacks import Progress, Ranges, Reporter
from rlmix.agents.checkpoint import SCHEMA, borrowed_randomness, capture
from rlmix.agents.ppo import PPOConfig, learn, total_timesteps, train_ppo
from rlmix.agents.runs import CHECKPOINT, open_run, settings_of
from rlmix.envs import digits_set
from rlmix.errors import CheckpointError, ConfigError
from rlmix.monitor.board import Board
from rlmix.ops import rng

HORIZON = 2
NAMES = ("progress", "context", "constant", "noise")


class ToyWaves(VecEnv):
    """Trainings of two decisions; a decision is right if it is the entry that the context shows; paid at the end."""

    render_mode = None

    def __init__(self, num_envs: int) -> None:
        box = gymnasium.spaces.Box(-5.0, 5.0, (len(NAMES),), np.float32)
        super().__init__(num_envs, box, gymnasium.spaces.Discrete(3))
        self.wave, self.time, self.right = 0, 0, np.zeros(num_envs)
        self.actions = np.zeros(num_envs, dtype=np.int64)

    def _observe(self):
        key = torch.tensor([rng.derive(7, self.wave, self.time)])
        self.context = rng.integers(key, 100, (self.num_envs,), 3)[0].numpy()
        noise = rng.normal(key, 101, (self.num_envs,))[0].numpy()
        rows = [np.full(self.num_envs, self.time - 0.5), self.context - 1.0, np.full(self.num_envs, 0.25), noise]
        return np.stack(rows, axis=1).astype(np.float32)

    def reset(self):
        self.time, self.right = 0, np.zeros(self.num_envs)
        return self._observe()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.right += self.actions == self.context
        self.time += 1
        done = self.time == HORIZON
        reward = (self.right if done else np.zeros(self.num_envs)).astype(np.float32)
        infos = [{} for _ in range(self.num_envs)]
        observation = self._observe()
        if done:
            for info, total, row in zip(infos, reward.tolist(), observation, strict=True):
                info |= {"terminal_observation": row, "TimeLimit.truncated": False, "is_success": total > 1}
                info["episode"] = {"r": total, "l": HORIZON}
            self.wave += 1
            observation = self.reset()
        return observation, reward, np.full(self.num_envs, done), infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def toy_config(out, **changes):
    fields = {"actors": 32, "timesteps": 32 * HORIZON * 4, "batch_size": 32, "out": str(out), "learning_rate": 3e-3}
    return PPOConfig(**{**fields, **changes})


def run(config, *, callbacks=(), resume=False, identity=None):
    ranges, env = Ranges.empty(len(NAMES)), ToyWaves(config.actors)
    identity = identity or {"seed": config.seed}
    tree = open_run(config.out, settings_of(config), identity, schema=SCHEMA, resume=resume)
    env.wave = tree.get("timesteps", 0) // (config.actors * HORIZON)
    with borrowed_randomness(), Board(config.out) as board:
        model = learn(
            env,
            config,
            horizon=HORIZON,
            ranges=ranges,
            identity=identity,
            board=board,
            callbacks=callbacks,
            resumed=tree,
        )
        return model, capture(model)


def test_learns_to_follow_the_context(tmp_path):
    """A wrong sign, a shifted reward or a mixed-up actor dimension all leave the toy at chance, 2/3 of 2."""
    model, _ = run(toy_config(tmp_path, timesteps=32 * HORIZON * 40))
    rewards = [episode["r"] for episode in model.ep_info_buffer]
    assert sum(rewards) / len(rewards) > 1.7


def test_same_seed_same_policy_and_another_seed_another(tmp_path):
    """A demo that prints another table at every run cannot be checked by anybody."""
    first, second = (run(toy_config(tmp_path / name))[1] for name in ("a", "b"))
    assert equal_trees(first, second)
    _, other = run(toy_config(tmp_path / "c", seed=1))
    assert not equal_trees(first["policy"], other["policy"])


def interrupt_after(decisions):
    def hook(progress: Progress) -> None:
        if progress.decisions >= decisions:
            raise KeyboardInterrupt

    return Reporter(hook, 0)


@pytest.mark.parametrize(("step", "changes"), [(1, {}), (2, {}), (1, {"final_learning_rate": 1e-3})])
def test_resumed_run_ends_with_the_same_bits_as_one_in_one_go(tmp_path, step, changes):
    """Whatever the checkpoint forgets (a random state, Adam's moments, the wave) shows in the final bits."""
    _, straight = run(toy_config(tmp_path / "straight", **changes))
    config = toy_config(tmp_path / "broken", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(config, callbacks=[interrupt_after(32 * HORIZON * 2 + 32 * step)])
    assert load_tree(tmp_path / "broken" / CHECKPOINT)["timesteps"] == 32 * HORIZON * 2
    model, resumed = run(config, resume=True)
    assert equal_trees(straight, resumed)
    assert model.num_timesteps == total_timesteps(config, HORIZON)
    both = (load_tree(tmp_path / name / CHECKPOINT) for name in ("straight", "broken"))
    assert equal_trees(*both)


def test_resuming_a_finished_run_changes_nothing_and_a_longer_one_goes_on(tmp_path):
    """`--resume` in a script that is started twice must not train on; with more timesteps it must."""
    _, first = run(toy_config(tmp_path / "a", timesteps=32 * HORIZON * 2))
    _, again = run(toy_config(tmp_path / "a", timesteps=32 * HORIZON * 2), resume=True)
    assert equal_trees(first, again)
    _, longer = run(toy_config(tmp_path / "a"), resume=True)
    _, straight = run(toy_config(tmp_path / "b"))
    assert equal_trees(longer, straight)


def test_the_step_size_falls_evenly_to_its_last_value(tmp_path):
    """Of n updates the first uses the share (n - 1) / n of the way that remains, the last none of it."""
    rates = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            rates.append(self.model.policy.optimizer.param_groups[0]["lr"])

    model, _ = run(toy_config(tmp_path, final_learning_rate=1e-3), callbacks=[Watch()])
    rates.append(model.policy.optimizer.param_groups[0]["lr"])
    assert rates[1:] == pytest.approx([1e-3 + 2e-3 * share for share in (0.75, 0.5, 0.25, 0.0)])


def test_a_run_whose_step_size_falls_cannot_be_made_longer(tmp_path):
    """Its first part would have had other step sizes in a run that long from the beginning."""
    config = {"actors": 2, "batch_size": 16, "evaluate_every": 0, "catalogue": "cheap", "out": str(tmp_path)}
    sets = {"instances": digits_set("train", 1), "validation": digits_set("validation", 1)}
    train_ppo(PPOConfig(timesteps=16, final_learning_rate=1e-4, **config), **sets)
    with pytest.raises(CheckpointError, match=r"`timesteps` was 16 and is now 32"):
        train_ppo(PPOConfig(timesteps=32, final_learning_rate=1e-4, **config), **sets, resume=True)


def test_resume_refuses_another_run_and_says_what_changed(tmp_path):
    """Going on with another learning rate would give a result that no configuration describes."""
    config = toy_config(tmp_path)
    run(config, identity={"learning_rate": 0.001, "catalogue": "abc"})
    with pytest.raises(CheckpointError, match=r"`learning_rate` was 0.001 and is now 0.01.*another folder"):
        run(config, identity={"learning_rate": 0.01, "catalogue": "abc"}, resume=True)


def test_resume_without_a_checkpoint_names_the_file(tmp_path):
    """Starting afresh in silence would hide a mistyped folder."""
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors` does not exist"):
        run(toy_config(tmp_path), resume=True)


def test_the_callers_random_states_come_back(tmp_path):
    """stable-baselines3 seeds Python, NumPy and torch; a user's own numbers must not change by training an agent."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    run(toy_config(tmp_path, timesteps=1))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected  # noqa: NPY002


def test_advantages_of_a_final_reward_are_those_computed_by_hand():
    """With discount 1 and rewards at the end only, A_t = sum of lambda^k delta_{t+k}; nothing leaks past the end."""
    lam, values, final = 0.97, [0.1, -0.2, 0.4], 1.5
    buffer = RolloutBuffer(
        3, gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2), "cpu", gae_lambda=lam, gamma=1.0
    )
    for step, value in enumerate(values):
        buffer.add(
            np.zeros((1, 1)),
            np.zeros((1, 1)),
            np.array([final if step == 2 else 0.0]),
            np.array([step == 0]),
            torch.tensor([value]),
            torch.zeros(1),
        )
    buffer.compute_returns_and_advantage(last_values=torch.tensor([99.0]), dones=np.array([True]))
    deltas = [values[1] - values[0], values[2] - values[1], final - values[2]]
    expected = [deltas[0] + lam * deltas[1] + lam**2 * deltas[2], deltas[1] + lam * deltas[2], deltas[2]]
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, rtol=1e-5)


def test_ranges_hold_the_lowest_and_highest_of_all_waves():
    """The deployed policy clips to them; a range of the last wave alone would clip what it was trained on."""
    ranges, numbers = Ranges.empty(2), torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0))
    for wave in numbers:
        ranges.add(wave)
    assert torch.equal(ranges.low, numbers.flatten(0, 1).amin(0))
    assert torch.equal(ranges.high, numbers.flatten(0, 1).amax(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actors": 1}, "`actors` must be at least 2, got 1"),
        ({"timesteps": 0}, "`timesteps` must be at least 1, got 0"),
        ({"seed": -1}, r"`seed` must be in \[0, 2\*\*32\), got -1"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0, got nan"),
        ({"final_learning_rate": 0.0}, r"`final_learning_rate` must be in \(0, 0.001\]"),
        ({"clip": 1.0}, r"`clip` must be in \(0, 1\)"),
        ({"hidden": ()}, r"`hidden` must hold widths of at least 1, got \[\]"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    """A typo in a configuration must not become a training that fails an hour later."""
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**changes)


def test_a_minibatch_that_does_not_divide_the_wave_is_refused_with_one_that_does(tmp_path):
    """A last minibatch of few decisions would get the weight of a full one."""
    with pytest.raises(ConfigError, match=r"2 decisions = 64, got 48. The nearest size below that does is 32"):
        run(toy_config(tmp_path, batch_size=48))
