"""QR-DQN: a toy that it must learn, exploration by row, the exported mean, and resuming bit for bit."""

from __future__ import annotations

import hashlib
import random  # noqa: TID251  (its state must come back)

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlmix._files import equal_trees, load_tree
from rlmix.agents.callbacks import Progress, Ranges
from rlmix.agents.checkpoint import borrowed_randomness
from rlmix.agents.qrdqn import QRDQNConfig, Watch, learn, require_contrib, total_timesteps, train_qrdqn
from rlmix.agents.runs import CHECKPOINT
from rlmix.envs.instances import Family, Recipe
from rlmix.errors import CheckpointError, ConfigError
from rlmix.monitor.board import Board
from rlmix.ops import rng
from rlmix.policy.artifact import load
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.network import PolicyNetwork
from rlmix.training.config import load_config

pytest.importorskip("sb3_contrib")
from rlmix.agents.qrdqn_model import capture_run, mean_layers

HORIZON, ACTORS, WAVES = 2, 32, 4
TOY = Catalogue({name: Decision(name) for name in ("none", "mixup", "cutmix")})


class ToyWaves(VecEnv):
    """Trainings of two decisions; a decision is right if it is the entry that the context shows; paid at the end."""

    render_mode = None

    def __init__(self, num_envs: int, wave: int) -> None:
        box = gymnasium.spaces.Box(-5.0, 5.0, (3,), np.float32)
        super().__init__(num_envs, box, gymnasium.spaces.Discrete(3))
        self.wave, self.time, self.right = wave, 0, np.zeros(num_envs)
        self.actions = np.zeros(num_envs, dtype=np.int64)

    def _observe(self):
        key = torch.tensor([rng.derive(7, self.wave, self.time)])
        self.context = rng.integers(key, 100, (self.num_envs,), 3)[0].numpy()
        noise = rng.normal(key, 101, (self.num_envs,))[0].numpy()
        rows = [np.full(self.num_envs, self.time - 0.5), self.context - 1.0, noise]
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
                info |= {"terminal_observation": row, "TimeLimit.truncated": False}
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
    fields = {
        "actors": ACTORS,
        "timesteps": ACTORS * HORIZON * WAVES,
        "batch_size": 32,
        "updates": 8,
        "quantiles": 10,
        "n_steps": 2,
        "learning_rate": 3e-3,
        "hidden": (32,),
        "out": str(out),
    }
    return QRDQNConfig(**{**fields, **changes})


def run(config, *, progress=None, resume=False):
    tree = load_tree(f"{config.out}/{CHECKPOINT}") if resume else {}
    env = ToyWaves(config.actors, tree.get("timesteps", 0) // (config.actors * HORIZON))
    watch = Watch(config, HORIZON, TOY, ranges=Ranges.empty(3), identity={}, look=lambda model: {}, progress=progress)
    with borrowed_randomness(), Board(config.out) as board:
        model = learn(env, config, horizon=HORIZON, watch=watch, board=board, resumed=tree)
    return model, capture_run(model)


def test_learns_to_follow_the_context(tmp_path):
    """A wrong sign, a reward at the wrong decision or a discount below the horizon leave the toy at chance, 1/3."""
    model, _ = run(toy_config(tmp_path, timesteps=ACTORS * HORIZON * 40, updates=32))
    seen = np.array([[time, context - 1.0, 0.3] for time in (-0.5, 0.5) for context in (0, 1, 2)], dtype=np.float32)
    actions, _ = model.predict(seen, deterministic=True)
    assert actions.tolist() == [0, 1, 2, 0, 1, 2]
    # At the last decision a right choice is worth one more than a wrong one.
    values = PolicyNetwork(actor=mean_layers(model)).logits(torch.from_numpy(seen[3:]))
    assert torch.diagonal(values).mean() - values.mean() > 0.4


def test_rows_explore_one_by_one(tmp_path):
    """One draw for a whole wave makes an interval either random or greedy for all.

    Of 3,200 rows with two thirds of a random choice being another entry, the share is within 4.5 deviations of 0.2.
    """
    model, _ = run(toy_config(tmp_path, timesteps=1))
    model.exploration_rate = 0.3
    seen = np.zeros((3200, 3), dtype=np.float32)
    greedy, _ = model.predict(seen, deterministic=True)
    chosen, _ = model.predict(seen)
    share = float((chosen != greedy).mean())
    assert abs(share - 0.2) < 4.5 * (0.2 * 0.8 / 3200) ** 0.5
    again, _ = model.predict(seen)
    assert np.array_equal(chosen, again)
    model.num_timesteps += 1
    assert not np.array_equal(model.predict(seen)[0], chosen)


def test_random_choices_become_fewer(tmp_path):
    """Exploration that never ends fills the buffer with random trainings; one that never begins learns nothing."""
    rates = []
    for waves in (0, 1, 2, 4):
        folder = tmp_path / str(waves)

        def stop(progress: Progress, waves=waves) -> None:
            if progress.decisions > waves * ACTORS * HORIZON:
                raise KeyboardInterrupt

        if waves < WAVES:
            with pytest.raises(KeyboardInterrupt):
                run(toy_config(folder), progress=stop)
        else:
            run(toy_config(folder))
        rates.append(load_tree(folder / CHECKPOINT)["exploration"])
    assert rates == pytest.approx([1.0, 0.525, 0.05, 0.05])


def test_exported_layers_are_the_mean_over_the_quantiles(tmp_path):
    """What QR-DQN is greedy for; exporting one quantile would act by the worst or the best case."""
    model, _ = run(toy_config(tmp_path))
    seen = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quantiles = model.quantile_net(seen)
    assert quantiles.shape == (50, 10, 3)
    network = PolicyNetwork(actor=mean_layers(model))
    torch.testing.assert_close(network.logits(seen), quantiles.mean(1), rtol=1e-5, atol=1e-6)
    actions, _ = model.predict(seen.numpy(), deterministic=True)
    assert network.logits(seen).argmax(1).tolist() == actions.tolist()


@pytest.mark.parametrize("buffer", [50_000, ACTORS * HORIZON * 3])
@pytest.mark.parametrize("step", [1, 2])
def test_resumed_run_ends_with_the_same_bits_as_one_in_one_go(tmp_path, step, buffer):
    """Whatever the checkpoint forgets (replay buffer, target network, Adam's moments) shows in the final bits."""
    _, straight = run(toy_config(tmp_path / "straight", buffer=buffer))
    config = toy_config(tmp_path / "broken", buffer=buffer)

    def stop(progress: Progress) -> None:
        if progress.decisions >= ACTORS * (HORIZON * 3 + step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, progress=stop)
    assert load_tree(tmp_path / "broken" / CHECKPOINT)["timesteps"] == ACTORS * HORIZON * 3
    model, resumed = run(config, resume=True)
    assert equal_trees(straight, resumed)
    assert model.num_timesteps == total_timesteps(config, HORIZON)
    both = (load_tree(tmp_path / name / CHECKPOINT) for name in ("straight", "broken"))
    assert equal_trees(*both)


def tiny(part, count=4):
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=4).generate(part, count)


def real_config(out, **changes):
    fields = {"catalogue": "cheap", "timesteps": 96, "actors": 8, "batch_size": 16, "updates": 4, "evaluate_every": 1}
    return QRDQNConfig(**{**fields, "out": str(out), **changes})


def train(settings, **arguments):
    return train_qrdqn(settings, instances=tiny("train"), validation=tiny("validation", 2), **arguments)


def digest(folder):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "policy").iterdir())]


def test_a_whole_training_and_its_resumption(tmp_path):
    """Through environment, checkpoint, policy and card; the caller's random states are left alone."""
    random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    policy = train(real_config(tmp_path / "whole"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002

    def stop(progress: Progress) -> None:
        if progress.decisions == 8 * 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(real_config(tmp_path / "broken"), progress=stop)
    train(real_config(tmp_path / "broken"), resume=True)
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    loaded = load(tmp_path / "whole" / "policy")
    assert loaded.card["algorithm"] == "QR-DQN"
    assert loaded.card["timesteps"] == 96
    assert {"eval/accuracy", "eval/score"} <= set(loaded.card["statistics"])
    assert loaded.catalogue == catalogue("cheap")
    assert torch.equal(loaded.network.actor[-1][0], policy.network.actor[-1][0])
    assert load_config(tmp_path / "whole" / "config.yaml", QRDQNConfig) == real_config(tmp_path / "whole")
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert names == {"checkpoint.safetensors", "config.yaml", "events.out", "policy.json", "policy.safetensors"}
    events = EventAccumulator(str(tmp_path / "whole"))
    events.Reload()
    expected = {"train/loss", "rollout/ep_rew_mean", "rollout/exploration_rate", "eval/score"}
    assert expected | {"policy/probability/none/0", "policy/probability/cutmix/3"} <= set(events.Tags()["scalars"])
    assert "mixed/entries" in events.Tags()["images"]
    assert [event.step for event in events.Scalars("train/loss")] == [32, 64, 96]
    with pytest.raises(CheckpointError, match="`updates` was 4 and is now 5"):
        train(real_config(tmp_path / "whole", updates=5), resume=True)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """An ImportError from the depths does not name the extra."""
    import sys

    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlmix\[contrib\]'"):
        require_contrib()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "`updates` must be at least 1, got 0"),
        ({"exploration": 0.0}, r"`exploration` must be in \(0, 1\]"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0, got nan"),
        ({"hidden": (0,)}, r"`hidden` must hold widths of at least 1, got \[0\]"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    """A typo in a configuration must not become a training that fails an hour later."""
    with pytest.raises(ConfigError, match=message):
        QRDQNConfig(**changes)


def test_a_buffer_below_a_wave_is_refused(tmp_path):
    """Its oldest decisions would be lost before they are learned from."""
    with pytest.raises(ConfigError, match="`buffer` must hold a wave of 64 decisions at least, got 63"):
        run(toy_config(tmp_path, buffer=63))
