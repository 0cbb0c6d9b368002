"""Proximal policy optimisation over many small trainings, through stable-baselines3.

One rollout is one wave: every actor trains a classifier from beginning to end, then the policy is updated. The paper
is Schulman et al. 2017 (https://arxiv.org/abs/1707.06347). The discount is 1, since an episode is one training and
its only reward comes at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlmix._files import load_tree, writable_folder, write_text
from rlmix.agents.callbacks import BoardWriter, Curves, Evaluations, Keeper, ProgressHook, Ranges, Reporter
from rlmix.agents.checkpoint import SCHEMA, borrowed_randomness, check_identity, restore
from rlmix.agents.export import export
from rlmix.agents.validation import Validation, draw_entries
from rlmix.envs.instances import InstanceSet, instance_set
from rlmix.envs.sb3 import MixVecEnv
from rlmix.errors import CheckpointError, ConfigError, OutputError
from rlmix.monitor.board import Board
from rlmix.monitor.provenance import versions
from rlmix.policy import signals
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.training.config import Device
from rlmix.training.loop import choose_device

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.yaml"
POLICY = "policy"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
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
        batch_size: decisions in a minibatch; must divide actors x horizon, unless a wave has fewer.
        epochs: passes over a wave's decisions.
        entropy: weight of the entropy bonus.
        clip: largest change of a probability ratio that is rewarded, in (0, 1).
        gae_lambda: decay of the advantage estimate, in [0, 1].
        hidden: widths of the hidden layers of actor and critic.
        evaluate_every: waves between two evaluations on validation instances; 0 evaluates at the end only.
    """

    instances: str = "digits"
    catalogue: str = "v0"
    timesteps: int = 12_288
    actors: int = 64
    seed: int = 0
    out: str = "runs/agent"
    device: Device = "cpu"
    data_dir: str | None = None
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 8
    entropy: float = 0.01
    clip: float = 0.2
    gae_lambda: float = 0.97
    hidden: tuple[int, ...] = (64, 64)
    evaluate_every: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, lowest in _LOWEST.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"`{name}` must be at least {lowest}, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"`seed` must be in [0, 2**32), got {self.seed}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"`learning_rate` must be above 0, got {self.learning_rate}.")
        if not (0 < self.clip < 1 and 0 <= self.gae_lambda <= 1 and 0 <= self.entropy < math.inf):
            raise ConfigError(
                "`clip` must be in (0, 1), `gae_lambda` in [0, 1] and `entropy` at least 0, got "
                f"{self.clip}, {self.gae_lambda} and {self.entropy}."
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"`hidden` must hold widths of at least 1, got {list(self.hidden)}.")


_LOWEST = {"timesteps": 1, "actors": 2, "batch_size": 2, "epochs": 1, "evaluate_every": 0}
# Where the run's files lie, how long it goes on and how often it is looked at do not change its course.
_FREE = frozenset({"out", "data_dir", "timesteps", "evaluate_every"})


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
        OutputError: `config.out` cannot be written, or already holds a run and `resume` is not set.

    Example:
        >>> policy = train_ppo(PPOConfig(timesteps=128, actors=16, out="/tmp/rlmix-agent"))  # doctest: +SKIP
        >>> policy.horizon  # doctest: +SKIP
        8
    """
    actions = catalogue(config.catalogue)
    training = instance_set(config.instances, "train") if instances is None else instances
    watched = instance_set(config.instances, "validation") if validation is None else validation
    names, device, horizon = signals.names(actions), choose_device(config.device), training.horizon
    identity = _identity(config, training, actions)
    tree = opened(config, identity, resume=resume)
    env = MixVecEnv(
        config.actors,
        instances=training,
        catalogue=actions,
        data_dir=config.data_dir,
        device=device,
        first_wave=tree.get("timesteps", 0) // (config.actors * horizon),
    )
    ranges = Ranges.empty(len(names))
    curves = Curves(actions, ranges)
    compare = Validation(watched, actions, seed=config.seed, device=device, data_dir=config.data_dir)

    def exported(model: PPO, statistics: Mapping[str, float]) -> LearnedPolicy:
        card = _card(config, training, model.num_timesteps, statistics)
        return export(model.policy, ranges=ranges, names=names, catalogue=actions, horizon=horizon, card=card)

    with borrowed_randomness(), Board(config.out, start=tree.get("timesteps", -1) + 1) as board:
        if not tree:
            draw_entries(board, actions, training.instances[0], config.data_dir)

        def look(model: PPO) -> Mapping[str, float]:
            curves.draw(board, model.num_timesteps)
            return compare(exported(model, {}))

        looks = Evaluations(config.evaluate_every, look)
        hooks = [] if progress is None else [Reporter(progress, total_timesteps(config, horizon))]
        model = learn(
            env,
            config,
            horizon=horizon,
            ranges=ranges,
            identity=identity,
            board=board,
            callbacks=[curves, looks, *hooks],
            resumed=tree,
        )
        policy = exported(model, looks.last)
        save(Path(config.out) / POLICY, policy)
        board.hyperparameters(_flat(config), {f"final/{name}": value for name, value in looks.last.items()})
    return policy


def opened(config: PPOConfig, identity: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return the checkpoint in `config.out` that the run goes on from; for a new run, an empty tree.

    Args:
        config: names the folder.
        identity: what the run is started with, by name; a resumed run's must be the same.
        resume: whether to go on.

    Raises:
        CheckpointError: there is no checkpoint to resume, or it belongs to another run.
        OutputError: the folder cannot be written, or holds a run that is not to be resumed.
    """
    folder = writable_folder(config.out)
    path = folder / CHECKPOINT
    if not resume:
        if path.exists():
            raise OutputError(f"`{folder}` already holds a run. Go on with it by --resume, or give another --out.")
        write_text(folder / CONFIG, yaml.safe_dump({**asdict(config), "hidden": list(config.hidden)}, sort_keys=False))
        return {}
    tree = load_tree(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise CheckpointError(f"`{path}` is no checkpoint of an agent's training. Give the folder of such a run.")
    check_identity(path, tree["identity"], identity)
    return tree


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
        resumed: what `opened` returned.

    Raises:
        CheckpointError: the checkpoint does not fit.
        ConfigError: the minibatches do not divide the wave.
    """
    model = _model(env, config, horizon)
    if resumed:
        restore(model, resumed)
        ranges.low, ranges.high = resumed["ranges"]["low"], resumed["ranges"]["high"]
    model.set_logger(Logger(folder=None, output_formats=[BoardWriter(board)]))
    keeper = Keeper(Path(config.out) / CHECKPOINT, identity, ranges, resumed)
    remaining = max(0, total_timesteps(config, horizon) - model.num_timesteps)
    return model.learn(remaining, callback=[keeper, *callbacks], reset_num_timesteps=False)


def total_timesteps(config: PPOConfig, horizon: int) -> int:
    """Return the number of decisions of a whole training: `config.timesteps` rounded up to whole waves."""
    wave = config.actors * horizon
    return -(-config.timesteps // wave) * wave


def _identity(config: PPOConfig, training: InstanceSet, actions: Catalogue) -> dict[str, Any]:
    """Return what decides the course of a run, by name."""
    values = {name: value for name, value in asdict(config).items() if name not in _FREE}
    digests = {"instances": training.digest, "catalogue": actions.digest}
    return {**values, "observation": signals.OBSERVATION, **digests}


def _card(config: PPOConfig, training: InstanceSet, timesteps: int, statistics: Mapping[str, float]) -> dict[str, Any]:
    """Return where a policy comes from; it says the same for the same run at any place and time."""
    values = {name: value for name, value in asdict(config).items() if name not in ("out", "data_dir", "timesteps")}
    return {
        "algorithm": "PPO",
        "instances": {"name": training.name, "digest": training.digest, "count": len(training)},
        "timesteps": timesteps,
        "seed": config.seed,
        "config": {**values, "hidden": list(config.hidden)},
        "versions": versions(),
        "statistics": dict(statistics),
    }


def _flat(config: PPOConfig) -> dict[str, bool | float | str | None]:
    return {**asdict(config), "hidden": " ".join(map(str, config.hidden))}


def _model(env: VecEnv, config: PPOConfig, horizon: int) -> PPO:
    wave = config.actors * horizon
    batch = min(config.batch_size, wave)
    if wave % batch:
        fits = max(size for size in range(1, batch) if wave % size == 0)
        raise ConfigError(
            f"`batch_size` must divide a wave of {config.actors} actors x {horizon} decisions = {wave}, got "
            f"{batch}. The nearest size below that does is {fits}."
        )
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
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
        },
        seed=config.seed,
        device="cpu",
    )
