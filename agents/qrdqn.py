"""Quantile-regression DQN over many small trainings, through sb3-contrib (the extra `contrib`).

Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression"
(https://arxiv.org/abs/1710.10044). Each wave's decisions go into a replay buffer and are learned from many times, which
the on-policy agents cannot do. The discount is 1, since an episode is one training and its only reward comes at its
end; n-step returns carry that reward back faster than one decision at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlmix._files import save_tree
from rlmix.agents.callbacks import BoardWriter, Progress, ProgressHook, Ranges, usage
from rlmix.agents.checkpoint import borrowed_randomness, restore_randomness
from rlmix.agents.export import policy_of
from rlmix.agents.runs import (
    PLACES,
    POLICY,
    card_of,
    check_settings,
    checkpoint_path,
    identity_of,
    note_settings,
    open_run,
    settings_of,
)
from rlmix.agents.validation import CollapseAlarm, Validation, draw_entries
from rlmix.envs.instances import InstanceSet, instance_set
from rlmix.envs.sb3 import MixVecEnv
from rlmix.errors import ConfigError
from rlmix.monitor.board import Board
from rlmix.policy import signals
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.training.config import Device
from rlmix.training.loop import choose_device

if TYPE_CHECKING:
    from rlmix.agents.qrdqn_model import RowwiseQRDQN

    Look: TypeAlias = Callable[[RowwiseQRDQN], Mapping[str, float]]

SCHEMA = "rlmix.qrdqn-checkpoint/1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class QRDQNConfig:
    """How a policy is trained.

    Attributes:
        instances: "digits", or a YAML file that describes an instance set.
        catalogue: name of the catalogue of Decisions that the policy chooses from.
        timesteps: decisions over all actors, rounded up to whole waves of actors x horizon.
        actors: trainings in one wave, at least 2.
        seed: seed of everything.
        out: folder of checkpoint, policy and TensorBoard logs.
        device: where the classifiers train; the policy itself is too small for anything but a CPU.
        data_dir: folder of data sets that have to lie on disk.
        learning_rate: step size of Adam.
        batch_size: decisions in a minibatch.
        updates: minibatches after each wave.
        target_every: waves between two copies of the network into the target network.
        quantiles: quantiles of each entry's return.
        n_steps: decisions after which the target network takes over from what was seen.
        exploration: share of `timesteps` in which random choices become fewer, in (0, 1].
        exploration_final: share of random choices from then on, in [0, 1].
        buffer: decisions that are kept to learn from, at least a wave.
        hidden: widths of the hidden layers.
        evaluate_every: waves between two evaluations on validation instances; 0 evaluates at the end only.
    """

    instances: str = "digits"
    catalogue: str = "v0"
    timesteps: int = 12_288
    actors: int = 64
    seed: int = 0
    out: str = "runs/qrdqn"
    device: Device = "cpu"
    data_dir: str | None = None
    learning_rate: float = 1e-3
    batch_size: int = 128
    updates: int = 64
    target_every: int = 1
    quantiles: int = 50
    n_steps: int = 3
    exploration: float = 0.5
    exploration_final: float = 0.05
    buffer: int = 50_000
    hidden: tuple[int, ...] = (64, 64)
    evaluate_every: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_settings(self, _LOWEST)
        if not (0 < self.exploration <= 1 and 0 <= self.exploration_final <= 1):
            raise ConfigError(
                "`exploration` must be in (0, 1] and `exploration_final` in [0, 1], got "
                f"{self.exploration} and {self.exploration_final}."
            )


_LOWEST = {
    "timesteps": 1,
    "actors": 2,
    "batch_size": 2,
    "updates": 1,
    "target_every": 1,
    "quantiles": 1,
    "n_steps": 1,
    "buffer": 1,
    "evaluate_every": 0,
}
# How often the run is looked at does not change its course; its length does, through the exploration.
_FREE = PLACES | {"evaluate_every"}


def train_qrdqn(
    config: QRDQNConfig,
    *,
    instances: InstanceSet | None = None,
    validation: InstanceSet | None = None,
    resume: bool = False,
    progress: ProgressHook | None = None,
) -> LearnedPolicy:
    """Train a policy, and write it with checkpoint, configuration and TensorBoard events into `config.out`.

    The policy's logits are the mean returns of the entries: its choices are QR-DQN's, its probabilities only order
    them. An interrupted training (Ctrl-C too) loses the wave in progress; resumed, it ends with the same policy, bit
    for bit. The caller's random states are left as they were.

    Args:
        config: what to train on, and how.
        instances: training instances, instead of those of `config.instances`.
        validation: instances for the periodic evaluation, instead of those of `config.instances`.
        resume: go on from the checkpoint in `config.out`.
        progress: called after every decision.

    Raises:
        CheckpointError: there is nothing to resume, or it belongs to another run.
        ConfigError: sb3-contrib is not installed, or the replay buffer holds no whole wave.
        DataError: images are missing.
        EnvError: the catalogue has no uniform mixture, which the reward needs.
        OutputError: `config.out` cannot be written, or already holds a run and `resume` is not set.
    """
    actions = catalogue(config.catalogue)
    training = instance_set(config.instances, "train") if instances is None else instances
    watched = instance_set(config.instances, "validation") if validation is None else validation
    names, device, horizon = signals.names(actions), choose_device(config.device), training.horizon
    identity = identity_of(settings_of(config), _FREE, training, actions)
    require_contrib()
    tree = open_run(config.out, settings_of(config), identity, schema=SCHEMA, resume=resume)
    env = MixVecEnv(
        config.actors,
        instances=training,
        catalogue=actions,
        data_dir=config.data_dir,
        device=device,
        first_wave=tree.get("timesteps", 0) // (config.actors * horizon),
    )
    ranges = Ranges.empty(len(names))
    compare = Validation(watched, actions, seed=config.seed, device=device, data_dir=config.data_dir)
    last: dict[str, float] = {}

    def exported(model: RowwiseQRDQN, statistics: Mapping[str, float]) -> LearnedPolicy:
        from rlmix.agents.qrdqn_model import mean_layers

        card = card_of("QR-DQN", settings_of(config), training, model.num_timesteps, statistics)
        layers = mean_layers(model)
        return policy_of(layers, None, ranges=ranges, names=names, catalogue=actions, horizon=horizon, card=card)

    with borrowed_randomness(), Board(config.out, start=tree.get("timesteps", -1) + 1) as board:
        if not tree:
            draw_entries(board, actions, training.instances[0], config.data_dir)
        alarm = CollapseAlarm(board)

        def look(model: RowwiseQRDQN) -> Mapping[str, float]:
            last.update(compare(exported(model, {})))
            alarm(model.num_timesteps, last)
            return last

        watch = Watch(config, horizon, actions, ranges=ranges, identity=identity, look=look, progress=progress)
        model = learn(env, config, horizon=horizon, watch=watch, board=board, resumed=tree)
        policy = exported(model, last)
        save(Path(config.out) / POLICY, policy)
        note_settings(board, settings_of(config), last)
    return policy


def require_contrib() -> None:
    """Check that sb3-contrib can be imported.

    Raises:
        ConfigError: it cannot.
    """
    try:
        import sb3_contrib  # noqa: F401
    except ImportError as error:
        raise ConfigError("QR-DQN needs sb3-contrib. Install it by `pip install 'rlmix[contrib]'`.") from error


def learn(
    env: VecEnv, config: QRDQNConfig, *, horizon: int, watch: Watch, board: Board, resumed: Mapping[str, Any]
) -> RowwiseQRDQN:
    """Run QR-DQN on `env` for `config.timesteps` decisions, with a checkpoint before each wave and after the last.

    The global random states of Python, NumPy and torch are used; see `borrowed_randomness`.

    Args:
        env: trainings of `horizon` decisions that begin and end together. A resumed run must begin at its wave.
        config: how to learn.
        horizon: decisions in an episode.
        watch: what happens around the waves.
        board: where losses and returns are logged.
        resumed: the checkpoint that the run goes on from, or an empty mapping.

    Raises:
        CheckpointError: the checkpoint does not fit.
        ConfigError: the replay buffer holds no whole wave.
    """
    from rlmix.agents.qrdqn_model import RowwiseQRDQN, restore_run

    wave = config.actors * horizon
    if config.buffer < wave:
        raise ConfigError(f"`buffer` must hold a wave of {wave} decisions at least, got {config.buffer}.")
    model = RowwiseQRDQN(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
        buffer_size=config.buffer,
        learning_starts=0,
        batch_size=config.batch_size,
        gamma=1.0,
        train_freq=(horizon, "step"),
        gradient_steps=config.updates,
        n_steps=config.n_steps,
        target_update_interval=config.target_every * wave,
        exploration_fraction=config.exploration,
        exploration_initial_eps=1.0,
        exploration_final_eps=config.exploration_final,
        policy_kwargs={
            "net_arch": list(config.hidden),
            "n_quantiles": config.quantiles,
            "activation_fn": nn.Tanh,
        },
        seed=config.seed,
        device="cpu",
    )
    model.exploration_rate = 1.0
    if resumed:
        restore_run(model, resumed)
    watch.resumed = resumed
    model.set_logger(Logger(folder=None, output_formats=[BoardWriter(board)]))
    remaining = max(0, total_timesteps(config, horizon) - model.num_timesteps)
    # Logged is by episodes, all of which end together.
    model.learn(remaining, callback=watch, log_interval=config.actors, reset_num_timesteps=False)
    return model


def total_timesteps(config: QRDQNConfig, horizon: int) -> int:
    """Return the number of decisions of a whole training: `config.timesteps` rounded up to whole waves."""
    wave = config.actors * horizon
    return -(-config.timesteps // wave) * wave


@final
class Watch(BaseCallback):
    """What happens around QR-DQN's waves: checkpoints, observed ranges, curves, periodic evaluation, progress.

    Args:
        config: of the run.
        horizon: decisions in an episode.
        actions: what the actions mean.
        ranges: the observation ranges that belong to the run; a resumed run's are put in.
        identity: what the run was started with, for its checkpoints.
        look: returns numbers by tag; must not use global randomness.
        progress: called after every decision.

    Attributes:
        resumed: the checkpoint that the run goes on from, or an empty mapping.
    """

    def __init__(
        self,
        config: QRDQNConfig,
        horizon: int,
        actions: Catalogue,
        *,
        ranges: Ranges,
        identity: Mapping[str, Any],
        look: Look,
        progress: ProgressHook | None,
    ) -> None:
        super().__init__()
        self._config, self._horizon, self._actions = config, horizon, actions
        self._ranges, self._identity, self._look, self._progress = ranges, dict(identity), look, progress
        self._usage = usage(actions)
        self._chosen: list[torch.Tensor] = []
        self.resumed: Mapping[str, Any] = {}

    def _on_training_start(self) -> None:
        if self.resumed:
            saved = self.resumed["ranges"]
            self._ranges.low, self._ranges.high = saved["low"], saved["high"]
            restore_randomness(self.resumed)

    def _on_rollout_start(self) -> None:
        wave = self.num_timesteps // (self._config.actors * self._horizon)
        if self._config.evaluate_every and wave and wave % self._config.evaluate_every == 0:
            self._record(self._look(self._trained()))
        # The losses of the update just made, which would otherwise be lost with an interrupted wave.
        self.logger.dump(self.num_timesteps)
        self._write()
        self._chosen = []

    def _on_step(self) -> bool:
        # The observations that were decided on: the new ones are already the next wave's where this one has ended.
        self._ranges.add(torch.as_tensor(np.asarray(self.model._last_obs)))
        self._chosen.append(torch.as_tensor(self.locals["actions"]))
        if self._progress is not None:
            rewards = [float(episode["r"]) for episode in self.model.ep_info_buffer or ()]
            mean = sum(rewards) / len(rewards) if rewards else math.nan
            total = total_timesteps(self._config, self._horizon)
            self._progress(Progress(decisions=self.num_timesteps, total=total, reward=mean))
        return True

    def _on_rollout_end(self) -> None:
        entries = nn.functional.one_hot(torch.stack(self._chosen), len(self._actions)).double().mean(1)
        for decision, row in enumerate((entries @ self._usage).tolist()):
            for method, share in zip(self._actions.methods, row, strict=True):
                self.logger.record(f"policy/probability/{method}/{decision}", share)

    def _on_training_end(self) -> None:
        self._record(self._look(self._trained()))
        self.logger.dump(self.num_timesteps)
        self._write()

    def _trained(self) -> RowwiseQRDQN:
        """Return the callback's algorithm, which this module only ever runs as QR-DQN."""
        return cast("RowwiseQRDQN", self.model)

    def _record(self, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self.logger.record(tag, value)

    def _write(self) -> None:
        from rlmix.agents.qrdqn_model import capture_run

        ranges = {"low": self._ranges.low, "high": self._ranges.high}
        tree = {**capture_run(self._trained()), "schema": SCHEMA, "identity": self._identity, "ranges": ranges}
        save_tree(checkpoint_path(self._config.out), tree)
