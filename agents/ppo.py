"""Proximal policy optimisation over many small trainings, through stable-baselines3.

One rollout is one wave: every actor trains a classifier from beginning to end, then the policy is updated. The paper
is Schulman et al. 2017 (https://arxiv.org/abs/1707.06347). The discount is 1, since an episode is one training and
its only reward comes at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlmix.agents import head_start
from rlmix.agents.callbacks import BoardWriter, Curves, Evaluations, Keeper, ProgressHook, Ranges, Reporter
from rlmix.agents.checkpoint import SCHEMA, borrowed_randomness, restore
from rlmix.agents.export import export
from rlmix.agents.hybrid import HybridPolicy
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
from rlmix.agents.vine import Vine
from rlmix.envs.block import Library
from rlmix.envs.instances import InstanceSet, instance_set
from rlmix.envs.pool import Pool
from rlmix.envs.reference import References
from rlmix.envs.sb3 import MixVecEnv
from rlmix.errors import ConfigError
from rlmix.monitor.board import Board
from rlmix.policy import signals
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import AbstractCodec, ActionKind
from rlmix.policy.parametric import HybridCodec, find_codec
from rlmix.training.config import Device
from rlmix.training.loop import choose_device


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
    """How a policy is trained.

    Attributes:
        instances: "digits", or a YAML file that describes an instance set.
        action: what the policy chooses: "discrete", an entry of a catalogue of Decisions; "multidiscrete", a method and
            levels of its parameters; "hybrid", a method and its parameters.
        catalogue: name of the catalogue, or of the method space, that it chooses from.
        timesteps: decisions over all actors, rounded up to whole waves of actors x horizon.
        actors: trainings in one wave, at least 2.
        seed: seed of everything.
        out: folder of checkpoint, policy and TensorBoard logs.
        device: where the classifiers train; the policy itself is too small for anything but a CPU.
        data_dir: folder of data sets that have to lie on disk.
        processes: how many the trainings are divided among; the policy is the same for any number.
        learning_rate: step size of Adam.
        final_learning_rate: what it falls to, evenly, over `timesteps`, which then belong to what a resumed run must
            keep; None keeps it as it is.
        batch_size: decisions in a minibatch; must divide actors x horizon, unless a wave has fewer.
        epochs: passes over a wave's decisions.
        entropy: weight of the entropy bonus.
        clip: largest change of a probability ratio that is rewarded, in (0, 1).
        gae_lambda: decay of the advantage estimate, in [0, 1].
        hidden: widths of the hidden layers of actor and critic.
        head_start: how often each training instance is trained to see what observations are like, so that the policy
            can be fitted to the reference table of all entries before it tries any (`rlmix.agents.head_start`); 0 for
            no head start. The table is computed once for an instance set: 2 E trainings of each instance, whose last
            quarter and eighth are trained once more without a mix.
        forks: K, to take advantages from K forks of each training at each decision instead of the critic (`Vine`),
            which costs K (H + 1) / 2 times the trainings' steps on top; 0 for the critic.
        evaluate_every: waves between two evaluations on validation instances; 0 evaluates at the end only.
    """

    instances: str = "digits"
    action: ActionKind = "discrete"
    catalogue: str = "v0"
    timesteps: int = 12_288
    actors: int = 64
    seed: int = 0
    out: str = "runs/agent"
    device: Device = "cpu"
    data_dir: str | None = None
    processes: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float | None = None
    batch_size: int = 128
    epochs: int = 8
    entropy: float = 0.01
    clip: float = 0.2
    gae_lambda: float = 0.97
    hidden: tuple[int, ...] = (64, 64)
    head_start: int = 0
    forks: int = 0
    evaluate_every: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_settings(self, _LOWEST)
        if not (0 < self.clip < 1 and 0 <= self.gae_lambda <= 1 and 0 <= self.entropy < math.inf):
            raise ConfigError(
                "`clip` must be in (0, 1), `gae_lambda` in [0, 1] and `entropy` at least 0, got "
                f"{self.clip}, {self.gae_lambda} and {self.entropy}."
            )
        if self.final_learning_rate is not None and not 0 < self.final_learning_rate <= self.learning_rate:
            raise ConfigError(
                f"`final_learning_rate` must be in (0, {self.learning_rate}], `learning_rate`, got "
                f"{self.final_learning_rate}. None keeps the rate as it is."
            )
        if self.head_start and self.action != "discrete":
            raise ConfigError(
                f"`head_start` is from the table of a catalogue's entries, got {self.head_start} with action "
                f'"{self.action}". Set it to 0, or `action` to "discrete".'
            )
        if self.forks and self.processes > 1:
            raise ConfigError(
                f"`forks` are made within one process, got {self.forks} with {self.processes} `processes`. Set one of "
                "them to its default."
            )


_LOWEST = {
    "timesteps": 1, "actors": 2, "processes": 1, "batch_size": 2, "epochs": 1, "head_start": 0, "forks": 0,
    "evaluate_every": 0,
}  # fmt: skip
# How long the run goes on and how often it is looked at do not change its course.
_FREE = PLACES | {"timesteps", "evaluate_every"}


def train_ppo(
    config: PPOConfig,
    *,
    instances: InstanceSet | None = None,
    validation: InstanceSet | None = None,
    resume: bool = False,
    progress: ProgressHook | None = None,
) -> LearnedPolicy:
    """Train a policy, and write it with checkpoint, configuration and TensorBoard events into `config.out`.

    An interrupted training (Ctrl-C too) loses the wave in progress; resumed, it ends with the same policy, bit for
    bit. The caller's random states are left as they were.

    Args:
        config: what to train on, and how.
        instances: training instances, instead of those of `config.instances`.
        validation: instances for the periodic evaluation, instead of those of `config.instances`.
        resume: go on from the checkpoint in `config.out`.
        progress: called after every decision.

    Raises:
        CheckpointError: there is nothing to resume, or it belongs to another run.
        ConfigError: the configuration does not fit the instances.
        DataError: images are missing.
        EnvError: the catalogue has no uniform mixture, which the reward needs.
        InputError: there is no such kind of actions.
        OutputError: `config.out` cannot be written, or already holds a run and `resume` is not set.

    Example:
        >>> policy = train_ppo(PPOConfig(timesteps=128, actors=16, out="/tmp/rlmix-agent"))  # doctest: +SKIP
        >>> policy.horizon  # doctest: +SKIP
        8
    """
    actions = find_codec(config.action, config.catalogue)
    training = instance_set(config.instances, "train") if instances is None else instances
    watched = instance_set(config.instances, "validation") if validation is None else validation
    names, device, horizon = signals.names(actions.catalogue), choose_device(config.device), training.horizon
    free = _FREE if config.final_learning_rate is None else _FREE - {"timesteps"}
    identity = identity_of(settings_of(config), free, training, actions)
    tree = open_run(config.out, settings_of(config), identity, schema=SCHEMA, resume=resume)
    env = MixVecEnv(
        config.actors,
        instances=training,
        action=config.action,
        catalogue=actions,
        data_dir=config.data_dir,
        device=device,
        first_wave=tree.get("timesteps", 0) // (config.actors * horizon),
        processes=config.processes,
    )
    ranges = Ranges.empty(len(names))
    curves = Curves(actions.catalogue, ranges)
    compare = Validation(watched, actions, seed=config.seed, device=device, data_dir=config.data_dir)

    def exported(model: PPO, statistics: Mapping[str, float]) -> LearnedPolicy:
        card = card_of("PPO", settings_of(config), training, model.num_timesteps, statistics)
        return export(model.policy, ranges=ranges, names=names, catalogue=actions, horizon=horizon, card=card)

    board_of_run = Board(config.out, start=tree.get("timesteps", -1) + 1)
    with closing(env), borrowed_randomness(), board_of_run as board:
        if not tree:
            draw_entries(board, actions.catalogue, training.instances[0], config.data_dir)

        alarm = CollapseAlarm(board)

        def look(model: PPO) -> Mapping[str, float]:
            curves.draw(board, model.num_timesteps)
            found = compare(exported(model, {}))
            alarm(model.num_timesteps, found)
            return found

        def lead(model: PPO) -> None:
            library = Library(actions.catalogue, config.data_dir, device)
            references = References(training, library, None, config.processes)
            finishes = references.finishes(head_start.kept_decisions(horizon))
            gained = head_start.gains(references.table(), finishes, actions.catalogue)
            observations, held, ids = head_start.rollouts(
                env.pool, training, passes=config.head_start, seed=config.seed, ranges=ranges
            )
            rows = torch.tensor([training.ids.index(name) for name in ids])
            worth = head_start.goals(gained[rows], held, actions.catalogue, horizon)
            head_start.fit(model.policy, observations, worth, seed=config.seed)

        looks = Evaluations(config.evaluate_every, look)
        vines = [Vine(env.pool, config.forks)] if config.forks and isinstance(env.pool, Pool) else []
        hooks = [] if progress is None else [Reporter(progress, total_timesteps(config, horizon))]
        model = learn(
            env,
            config,
            horizon=horizon,
            ranges=ranges,
            identity=identity,
            board=board,
            callbacks=[*vines, curves, looks, *hooks],
            resumed=tree,
            codec=actions,
            begin=lead if config.head_start else None,
        )
        policy = exported(model, looks.last)
        save(Path(config.out) / POLICY, policy)
        note_settings(board, settings_of(config), looks.last)
    return policy


def learn(
    env: VecEnv,
    config: PPOConfig,
    *,
    horizon: int,
    ranges: Ranges,
    identity: Mapping[str, Any],
    board: Board,
    callbacks: Sequence[BaseCallback] = (),
    resumed: Mapping[str, Any] = MappingProxyType({}),
    codec: AbstractCodec | None = None,
    begin: Callable[[PPO], None] | None = None,
) -> PPO:
    """Run PPO on `env` for `config.timesteps` decisions, with a checkpoint before each wave and after the last.

    The global random states of Python, NumPy and torch are used; see `borrowed_randomness`.

    Args:
        env: trainings of `horizon` decisions that begin and end together. A resumed run must begin at its wave.
        config: how to learn.
        horizon: decisions in an episode.
        ranges: the observation ranges that belong to the run; a resumed run's are put in.
        identity: what the run is started with, for its checkpoints.
        board: where losses and returns are logged.
        callbacks: called at every event, after the checkpoint is written.
        resumed: what `open_run` returned.
        codec: what the actions of `env` mean; needed for hybrid ones.
        begin: called before anything else, but for a resumed run.

    Raises:
        CheckpointError: the checkpoint does not fit.
        ConfigError: the minibatches do not divide the wave.
    """
    model = _model(env, config, horizon, codec)
    if resumed:
        restore(model, resumed)
        ranges.low, ranges.high = resumed["ranges"]["low"], resumed["ranges"]["high"]
    elif begin is not None:
        begin(model)
    model.set_logger(Logger(folder=None, output_formats=[BoardWriter(board)]))
    keeper = Keeper(checkpoint_path(config.out), identity, ranges, resumed)
    remaining = max(0, total_timesteps(config, horizon) - model.num_timesteps)
    return model.learn(remaining, callback=[keeper, *callbacks], reset_num_timesteps=False)


def total_timesteps(config: PPOConfig, horizon: int) -> int:
    """Return the number of decisions of a whole training: `config.timesteps` rounded up to whole waves."""
    wave = config.actors * horizon
    return -(-config.timesteps // wave) * wave


def _rate(config: PPOConfig) -> Callable[[float], float]:
    """Return the step size of Adam for the share of the run that remains, from 1 to 0."""
    first = config.learning_rate
    last = first if config.final_learning_rate is None else config.final_learning_rate
    return lambda remaining: last + (first - last) * remaining


def _model(env: VecEnv, config: PPOConfig, horizon: int, codec: AbstractCodec | None) -> PPO:
    wave = config.actors * horizon
    batch = min(config.batch_size, wave)
    if wave % batch:
        fits = max(size for size in range(1, batch) if wave % size == 0)
        raise ConfigError(
            f"`batch_size` must divide a wave of {config.actors} actors x {horizon} decisions = {wave}, got "
            f"{batch}. The nearest size below that does is {fits}."
        )
    hybrid = isinstance(codec, HybridCodec)
    return PPO(
        HybridPolicy if hybrid else "MlpPolicy",
        env,
        learning_rate=_rate(config),
        n_steps=horizon,
        batch_size=batch,
        n_epochs=config.epochs,
        gamma=1.0,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        ent_coef=config.entropy,
        policy_kwargs={
            "net_arch": {"pi": list(config.hidden), "vf": list(config.hidden)},
            "activation_fn": nn.Tanh,
            **({"codec": codec} if hybrid else {}),
        },
        seed=config.seed,
        device="cpu",
    )
