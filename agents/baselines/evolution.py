"""A policy by evolution strategies: whole trainings are its only measure, without a critic and without a discount.

Each wave is one generation (`strategy`, Salimans et al. 2017, https://arxiv.org/abs/1703.03864). A member of the
population is a set of weights; it acts by the most probable entry, as the deployed policy does, and its fitness is the
mean reward of its trainings. The two members of an antithetic pair train the same instances with the same episode keys
(common random numbers), so that what they have in common cancels in their difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rlmix._files import save_tree
from rlmix.agents.baselines.strategy import EvolutionStrategy, initial, layers_of, member_logits
from rlmix.agents.callbacks import Progress, ProgressHook, Ranges, usage
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
from rlmix.envs.pool import Pool
from rlmix.envs.shell import reference_bar
from rlmix.errors import ConfigError
from rlmix.monitor.board import Board
from rlmix.policy import signals
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.training.config import Device
from rlmix.training.loop import choose_device

SCHEMA = "rlmix.es-checkpoint/1"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ESConfig:
    """How a policy is evolved.

    Attributes:
        instances: "digits", or a YAML file that describes an instance set.
        catalogue: name of the catalogue of Decisions that the policy chooses from.
        timesteps: decisions over all actors, rounded up to whole waves of actors x horizon.
        actors: trainings in one wave; a multiple of 2 x episodes.
        seed: seed of everything.
        out: folder of checkpoint, policy and TensorBoard logs.
        device: where the classifiers train; the policy itself is too small for anything but a CPU.
        data_dir: folder of data sets that have to lie on disk.
        episodes: trainings of one member in a wave, shared with its antithetic twin.
        sigma: standard deviation of the perturbations of a member's biases; of its weights over sqrt(inputs).
        learning_rate: step size of Adam.
        weight_decay: factor of the L2 penalty on the weights.
        hidden: widths of the hidden layers.
        evaluate_every: waves between two evaluations on validation instances; 0 evaluates at the end only.
    """

    instances: str = "digits"
    catalogue: str = "v0"
    timesteps: int = 12_288
    actors: int = 64
    seed: int = 0
    out: str = "runs/evolution"
    device: Device = "cpu"
    data_dir: str | None = None
    episodes: int = 1
    sigma: float = 0.3
    learning_rate: float = 0.1
    weight_decay: float = 0.005
    hidden: tuple[int, ...] = (64, 64)
    evaluate_every: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_settings(self, _LOWEST)
        if self.actors % (2 * self.episodes):
            raise ConfigError(
                f"`actors` must be a multiple of 2 x `episodes` = {2 * self.episodes}, since pairs share their "
                f"episodes, got {self.actors}."
            )
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"`sigma` must be above 0, got {self.sigma}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"`weight_decay` must be at least 0, got {self.weight_decay}.")

    @property
    def pairs(self) -> int:
        """Antithetic pairs in a wave."""
        return self.actors // (2 * self.episodes)


_LOWEST = {"timesteps": 1, "actors": 2, "episodes": 1, "evaluate_every": 0}
# How long the run goes on and how often it is looked at do not change its course.
_FREE = PLACES | {"timesteps", "evaluate_every"}


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wave:
    """What a generation did.

    Attributes:
        rewards: float32 [N].
        actions: int64 [N, H].
        observations: float32 [H, N, D], what was decided on.
    """

    rewards: Tensor
    actions: Tensor
    observations: Tensor


def train_es(
    config: ESConfig,
    *,
    instances: InstanceSet | None = None,
    validation: InstanceSet | None = None,
    resume: bool = False,
    progress: ProgressHook | None = None,
) -> LearnedPolicy:
    """Evolve a policy, and write it with checkpoint, configuration and TensorBoard events into `config.out`.

    An interrupted training (Ctrl-C too) loses the wave in progress; resumed, it ends with the same policy, bit for
    bit. No global random state is used.

    Args:
        config: what to train on, and how.
        instances: training instances, instead of those of `config.instances`.
        validation: instances for the periodic evaluation, instead of those of `config.instances`.
        resume: go on from the checkpoint in `config.out`.
        progress: called after every decision.

    Raises:
        CheckpointError: there is nothing to resume, or it belongs to another run.
        DataError: images are missing.
        EnvError: the catalogue has no uniform mixture, which the reward needs.
        OutputError: `config.out` cannot be written, or already holds a run and `resume` is not set.

    Example:
        >>> policy = train_es(ESConfig(timesteps=128, actors=16, out="/tmp/rlmix-es"))  # doctest: +SKIP
        >>> policy.network.critic is None  # doctest: +SKIP
        True
    """
    actions = catalogue(config.catalogue)
    training = instance_set(config.instances, "train") if instances is None else instances
    watched = instance_set(config.instances, "validation") if validation is None else validation
    identity = identity_of(settings_of(config), _FREE, training, actions)
    tree = open_run(config.out, settings_of(config), identity, schema=SCHEMA, resume=resume)
    device = choose_device(config.device)
    search = _Search(config, training, actions, device)
    if tree:
        search.restore(tree)
    compare = Validation(watched, actions, seed=config.seed, device=device, data_dir=config.data_dir)
    with Board(config.out, start=tree.get("timesteps", -1) + 1) as board:
        if not tree:
            draw_entries(board, actions, training.instances[0], config.data_dir)
        alarm = CollapseAlarm(board)

        def look() -> Mapping[str, float]:
            found = compare(search.policy({}))
            board.scalars(search.timesteps, found)
            alarm(search.timesteps, found)
            return found

        search.keep(identity)
        while search.timesteps < search.total:
            search.generation(board, progress)
            search.keep(identity)
            number = search.strategy.generation
            if config.evaluate_every and number % config.evaluate_every == 0 and search.timesteps < search.total:
                look()
        statistics = look()
        policy = search.policy(statistics)
        save(Path(config.out) / POLICY, policy)
        note_settings(board, settings_of(config), statistics)
    return policy


@final
class _Search:
    """A run: the strategy, the pool that its members train in, and what was observed."""

    def __init__(self, config: ESConfig, training: InstanceSet, actions: Catalogue, device: torch.device) -> None:
        self.config, self.training, self.actions = config, training, actions
        self.names, self.horizon = signals.names(actions), training.horizon
        self.widths = (len(self.names), *config.hidden, len(actions))
        self.strategy = EvolutionStrategy(
            initial(self.widths, config.seed),
            pairs=config.pairs,
            sigma=config.sigma,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
        )
        self.ranges = Ranges.empty(len(self.names))
        self.seeds = slot_seeds(config.seed, config.pairs, config.episodes)
        self.pool = Pool(
            training,
            seeds=self.seeds,
            catalogue=actions,
            data_dir=config.data_dir,
            device=device,
            progress=reference_bar(),
        )

    @property
    def timesteps(self) -> int:
        """Decisions taken in whole waves."""
        return self.strategy.generation * self.config.actors * self.horizon

    @property
    def total(self) -> int:
        """Decisions of the whole run: `config.timesteps` rounded up to whole waves."""
        wave = self.config.actors * self.horizon
        return -(-self.config.timesteps // wave) * wave

    def restore(self, tree: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.strategy.restore(tree["strategy"])
        self.ranges.low, self.ranges.high = tree["ranges"]["low"], tree["ranges"]["high"]
        self.pool.seed(self.seeds, self.strategy.generation)

    def keep(self, identity: Mapping[str, Any]) -> None:
        """Write the checkpoint: between two waves no classifier is under way."""
        tree = {
            "schema": SCHEMA,
            "identity": dict(identity),
            "timesteps": self.timesteps,
            "strategy": self.strategy.tree(),
            "ranges": {"low": self.ranges.low, "high": self.ranges.high},
        }
        save_tree(checkpoint_path(self.config.out), tree)

    def generation(self, board: Board, progress: ProgressHook | None) -> None:
        """Train one wave and move the centre."""
        members = self.strategy.ask()
        wave = play(self.pool, members.flatten(0, 1), self.widths, self._told(progress))
        self.ranges.add(wave.observations)
        fitness = fitness_of(wave.rewards, self.config.pairs, self.config.episodes)
        step = self.strategy.tell(fitness)
        curves = {
            "rollout/ep_rew_mean": float(wave.rewards.mean()),
            "evolution/fitness_highest": float(fitness.max()),
            "evolution/pair_difference": float((fitness[:, 0] - fitness[:, 1]).abs().mean()),
            "evolution/step": step,
            "evolution/norm": float(self.strategy.centre.norm()),
        }
        board.scalars(self.timesteps, {**curves, **self._methods(board, wave.actions)})
        board.flush()

    def policy(self, statistics: Mapping[str, float]) -> LearnedPolicy:
        """Return the centre as a policy."""
        return policy_of(
            layers_of(self.strategy.centre, self.widths),
            None,
            ranges=self.ranges,
            names=self.names,
            catalogue=self.actions,
            horizon=self.horizon,
            card=card_of("OpenAI-ES", settings_of(self.config), self.training, self.timesteps, statistics),
        )

    def _told(self, progress: ProgressHook | None) -> ProgressHook:
        """Return the hook of one wave, which counts from its beginning."""
        before = self.timesteps

        def told(wave: Progress) -> None:
            if progress is not None:
                progress(Progress(decisions=before + wave.decisions, total=self.total, reward=wave.reward))

        return told

    def _methods(self, board: Board, actions: Tensor) -> dict[str, float]:
        """Return how often the members used each method at each decision, and draw it where a look is due."""
        entries = torch.nn.functional.one_hot(actions.T, len(self.actions)).double().mean(1)
        shares = entries @ usage(self.actions)
        every = self.config.evaluate_every
        if self.timesteps >= self.total or (every and self.strategy.generation % every == 0):
            columns = {name: shares[:, number].tolist() for number, name in enumerate(self.actions.methods)}
            board.probabilities(self.timesteps, [number / self.horizon for number in range(self.horizon)], columns)
        return {
            f"policy/probability/{method}/{decision}": float(shares[decision, number])
            for decision in range(self.horizon)
            for number, method in enumerate(self.actions.methods)
        }


def slot_seeds(seed: int, pairs: int, episodes: int) -> list[int]:
    """Return each slot's seed: pair by pair, both twins in turn, and the same for both.

    Equal seeds pick equal instances and episode keys, so twins differ in their weights alone.
    """
    shared = [[seed + pair * episodes + episode for episode in range(episodes)] for pair in range(pairs)]
    return [value for own in shared for value in (*own, *own)]


def fitness_of(rewards: Tensor, pairs: int, episodes: int) -> Tensor:
    """Return each member's mean reward, float64 [pairs, 2].

    Args:
        rewards: [N], of the slots in the order of `slot_seeds`.
        pairs: antithetic pairs.
        episodes: trainings of one member.
    """
    return rewards.double().view(pairs, 2, episodes).mean(2)


def play(pool: Pool, members: Tensor, widths: tuple[int, ...], progress: ProgressHook) -> Wave:
    """Train one wave in which each member decides for its own slots.

    Args:
        pool: of a multiple of M slots, those of a member beside each other.
        members: float32 [M, P].
        widths: lengths of input, hidden layers and output of their networks.
        progress: called after every decision.
    """
    observations, rewards, done = pool.reset().cpu(), torch.zeros(0), False
    seen, chosen = [], []
    while not done:
        logits = member_logits(members, observations.view(len(members), -1, observations.shape[1]), widths)
        actions = logits.argmax(-1).flatten()
        seen.append(observations)
        chosen.append(actions)
        following, rewards, done, _ = pool.step(actions)
        observations = following.cpu()
        reward = float(rewards.mean()) if done else math.nan
        count = len(actions)
        progress(Progress(decisions=count * len(chosen), total=count * pool.horizon, reward=reward))
    return Wave(rewards=rewards.cpu(), actions=torch.stack(chosen, dim=1), observations=torch.stack(seen))
