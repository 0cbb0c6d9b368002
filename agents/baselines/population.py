"""Schedules found by a population of trainings of one instance: PBT, and PB2's choice of what to try next.

Jaderberg et al. 2017, "Population Based Training of Neural Networks" (https://arxiv.org/abs/1711.09846): at each
decision the worst fifth of the population copies the state of members of the best fifth (exploit: truncation
selection, their section 4.1.1), and the copies choose what to do next anew (explore). Here a member's state is its
classifier and the choice is a catalogue entry. What the best member did from beginning to end is an open-loop schedule.

Parker-Holder et al. 2020, "Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits"
(https://arxiv.org/abs/2002.02518) replace the random exploration by a Gaussian process over (time, choice) that is fed
with the improvements seen, and take the largest upper confidence bound.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix.agents.baselines.schedules import ScheduleAgent
from rlmix.envs.instances import Instance, InstanceSet
from rlmix.envs.pool import Pool
from rlmix.errors import ConfigError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

Explore: TypeAlias = Literal["pbt", "pb2"]

# What numbers are drawn for.
_FIRST, _PARENT, _RESAMPLED, _ENTRY = 135, 136, 137, 138


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PBTConfig:
    """How a population searches.

    Attributes:
        members: trainings side by side, at least 5.
        explore: "pbt" draws a new entry at random, "pb2" takes the largest upper confidence bound.
        replaced: share of the population that is replaced at each decision, in (0, 0.5].
        resampled: how probable it is that a PBT member that was not replaced draws a new entry too, in [0, 1]. With 0
            a good member would never change its entry, and the result would be no schedule.
        optimism: factor of the standard deviation in PB2's bound, at least 0.
        forgetting: how much less PB2 believes what is one decision older, in [0, 1).
        seed: seed of everything.
    """

    members: int = 32
    explore: Explore = "pbt"
    replaced: float = 0.2
    resampled: float = 0.25
    optimism: float = 1.0
    forgetting: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.members < 5 or not 0 < self.replaced <= 0.5 or self.explore not in ("pbt", "pb2"):
            raise ConfigError(
                "`members` must be at least 5, `replaced` in (0, 0.5] and `explore` pbt or pb2, got "
                f"{self.members}, {self.replaced} and {self.explore!r}."
            )
        if not 0 <= self.resampled <= 1 or not 0 <= self.optimism < math.inf or not 0 <= self.forgetting < 1:
            raise ConfigError(
                "`resampled` must be in [0, 1], `optimism` at least 0 and `forgetting` in [0, 1), got "
                f"{self.resampled}, {self.optimism} and {self.forgetting}."
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"`seed` must be in [0, 2**63), got {self.seed}.")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """What a search found.

    Attributes:
        schedule: what the best member did.
        score: its score S on the reward split at the end. The population was selected by it, so it is optimistic.
        actions: int64 [members, H], what each member and its ancestors did.
        scores: float64 [members, H], their scores after each decision.
    """

    schedule: ScheduleAgent
    score: float
    actions: Tensor
    scores: Tensor


def search_schedule(
    instance: Instance,
    instances: InstanceSet,
    config: PBTConfig,
    *,
    catalogue: Catalogue,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Population:
    """Train a population on one instance and return the schedule of its best member.

    One search is one training long and takes the place of `config.members` trainings; nothing is worth resuming.
    Members are compared on the instance's reward split, never on test images.

    Args:
        instance: what is trained.
        instances: its set, for the horizon.
        config: how to search.
        catalogue: what may be chosen.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.

    Raises:
        DataError: images are missing.
    """
    pool = Pool(instances, seeds=[0], catalogue=catalogue, reward=None, data_dir=data_dir, device=device)
    keys = [rng.derive(config.seed, rng.words(instance.id), member) for member in range(config.members)]
    pool.begin([instance] * config.members, keys)
    count, horizon = config.members, pool.horizon
    entries = rng.integers(torch.tensor([config.seed]), _FIRST, (count,), len(catalogue))[0]
    actions = torch.zeros(count, 0, dtype=torch.int64)
    scores = torch.zeros(count, 0, dtype=torch.float64)
    model = Surrogate(len(catalogue), config)
    before = pool.scores().score.cpu()
    for decision in range(horizon):
        pool.step(entries)
        after = pool.scores().score.cpu()
        actions = torch.cat([actions, entries.unsqueeze(1)], dim=1)
        scores = torch.cat([scores, after.unsqueeze(1)], dim=1)
        model.add(decision, entries, after - before)
        if decision == horizon - 1:
            break
        key = rng.derive(config.seed, decision)
        parents = survivors(after, config.replaced, key)
        moved = parents != torch.arange(count)
        pool = pool.fork(parents.tolist())
        actions, scores, before = actions[parents], scores[parents], after[parents]
        if config.explore == "pb2":
            entries = model.choose(decision + 1, count)
        else:
            entries = resampled(entries[parents], moved, len(catalogue), config.resampled, key)
    best = int(scores[:, -1].argmax())
    return Population(
        schedule=schedule_of(actions[best].tolist(), catalogue),
        score=float(scores[best, -1]),
        actions=actions,
        scores=scores,
    )


def survivors(scores: Tensor, replaced: float, key: int) -> Tensor:
    """Return whose state each member goes on with, int64 [N]: truncation selection.

    Each of the worst ones takes the place of one of the best, drawn at random; all others stay what they are.

    Args:
        scores: [N], higher is better.
        replaced: share of the population, in (0, 0.5].
        key: of the draws.
    """
    count = max(1, int(replaced * len(scores)))
    order = scores.argsort(descending=True, stable=True)
    parents = torch.arange(len(scores))
    drawn = rng.integers(torch.tensor([key]), _PARENT, (count,), count)[0]
    parents[order[-count:]] = order[:count][drawn]
    return parents


def resampled(entries: Tensor, moved: Tensor, choices: int, probability: float, key: int) -> Tensor:
    """Return the entries of the next interval, int64 [N]: new ones for those that moved, and some others.

    Args:
        entries: int64 [N], of the last interval.
        moved: bool [N], who took another's place.
        choices: number of entries.
        probability: for the others to draw anew.
        key: of the draws.
    """
    keys, shape = torch.tensor([key]), tuple(entries.shape)
    anew = moved | (rng.uniform(keys, _RESAMPLED, shape)[0] < probability)
    return torch.where(anew, rng.integers(keys, _ENTRY, shape, choices)[0], entries)


def schedule_of(entries: Sequence[int], catalogue: Catalogue) -> ScheduleAgent:
    """Return the schedule that chooses these entries at H equally long intervals; equal neighbours become one part."""
    parts = [
        (number / len(entries), catalogue.names[entry])
        for number, entry in enumerate(entries)
        if number == 0 or entry != entries[number - 1]
    ]
    return ScheduleAgent(tuple(parts), catalogue)


@final
class Surrogate:
    """PB2's model of the improvement that an entry brings at a decision: a Gaussian process that forgets.

    The kernel is that of Parker-Holder et al. 2020 (after Bogunovic et al. 2016), k(x, x') (1 - e)^(|t - t'| / 2). For
    entries, which have no order, k(x, x') is 1 for equal ones and a constant otherwise. Improvements are standardised
    within each decision, since all of them fall as a training goes on.

    Args:
        choices: number of entries.
        config: optimism and forgetting.
    """

    def __init__(self, choices: int, config: PBTConfig) -> None:
        self._choices, self._config = choices, config
        self._times = torch.zeros(0, dtype=torch.float64)
        self._entries = torch.zeros(0, dtype=torch.int64)
        self._gains = torch.zeros(0, dtype=torch.float64)

    def add(self, decision: int, entries: Tensor, gains: Tensor) -> None:
        """Take in what entries brought.

        Args:
            decision: when.
            entries: int64 [n].
            gains: float64 [n].
        """
        centred = gains - gains.mean()
        scaled = centred / centred.square().mean().sqrt().clamp_min(1e-12)
        self._append(torch.full((len(entries),), float(decision), dtype=torch.float64), entries, scaled)

    def choose(self, decision: int, count: int) -> Tensor:
        """Return `count` entries, int64 [count], one after the other.

        Each choice is put in as if its mean had been seen, which narrows the belief in it and sends the next elsewhere
        (as PB2's batches, after Desautels et al. 2014, https://jmlr.org/papers/v15/desautels14a.html).

        Args:
            decision: when they will be used.
            count: how many.
        """
        imagined = Surrogate(self._choices, self._config)
        imagined._append(self._times, self._entries, self._gains)
        now = torch.full((1,), float(decision), dtype=torch.float64)
        chosen = []
        for _ in range(count):
            means, deviations = imagined.posterior(decision)
            entry = (means + self._config.optimism * deviations).argmax().unsqueeze(0)
            imagined._append(now, entry, means[entry])
            chosen.append(entry)
        return torch.cat(chosen)

    def posterior(self, decision: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each entry's improvement at a decision, float64 [E] each."""
        now, every = torch.full((self._choices,), float(decision)).double(), torch.arange(self._choices)
        seen = self._kernel(self._times, self._entries) + _NOISE * torch.eye(len(self._times), dtype=torch.float64)
        across = self._kernel(now, every)
        solved = torch.linalg.solve(seen, torch.cat([self._gains.unsqueeze(1), across.T], dim=1))
        variances = 1.0 - (across * solved[:, 1:].T).sum(1)
        return across @ solved[:, 0], variances.clamp_min(0.0).sqrt()

    def _append(self, times: Tensor, entries: Tensor, gains: Tensor) -> None:
        self._times = torch.cat([self._times, times])
        self._entries = torch.cat([self._entries, entries])
        self._gains = torch.cat([self._gains, gains])

    def _kernel(self, times: Tensor, entries: Tensor) -> Tensor:
        """Return what rows have in common with what was seen, float64 [rows, n]."""
        apart = (times.unsqueeze(1) - self._times).abs()
        alike = torch.where(entries.unsqueeze(1) == self._entries, 1.0, _COMMON).double()
        return alike * (1.0 - self._config.forgetting) ** (apart / 2.0)


# What two different entries have in common; a standardised improvement is taken to be as noisy as entries differ.
_COMMON, _NOISE = 0.2, 1.0
