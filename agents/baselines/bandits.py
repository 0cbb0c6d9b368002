"""Bandits over the catalogue: they see nothing of a training but the reward at its end, and learn from one to the next.

An arm is an entry. It is drawn once for a training, or anew at each decision; either way the final reward is credited
to every action of the training, each with the weight 1/H. While a wave runs nothing is learned: all its trainings draw
from the same beliefs. What a row draws is a function of seed, wave, row and decision, and of the beliefs, so that an
agent that was saved and loaded goes on bit for bit.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix.agents.agent import AbstractAgent, Feedback
from rlmix.agents.baselines.documents import read, write
from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.envs.instances import InstanceSet
from rlmix.envs.pool import Pool
from rlmix.envs.shell import reference_bar
from rlmix.errors import InputError, PolicyError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue

Redraw: TypeAlias = Literal["training", "decision"]

# What numbers are drawn for.
_ARM, _KEPT = 132, 133
_QUANTILES = 0.2, 0.8


class AbstractRule(ABC):
    """What a bandit believes of its arms, and how it draws one.

    Attributes:
        arms: how many there are.
    """

    arms: int

    @abstractmethod
    def draw(self, allowed: Sequence[bool], key: int) -> tuple[int, float]:
        """Return an allowed arm, and how probable it was where the rule weighs by that (1 otherwise)."""

    @abstractmethod
    def learn(self, plays: Sequence[tuple[int, float]], reward: float, key: int) -> None:
        """Take in one training.

        Args:
            plays: its actions, each with the arm and how probable that was.
            reward: at its end.
            key: for the random numbers that learning needs.
        """

    @abstractmethod
    def best(self) -> int:
        """Return the arm that is believed to be the best."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return settings and beliefs as JSON can hold them."""


@final
class Exp3S(AbstractRule):
    """EXP3.S: Auer et al. 2002, "The Nonstochastic Multiarmed Bandit Problem", section 8.

    https://doi.org/10.1137/S0097539701398375. With the weights w, p_i = (1 - gamma) w_i / sum w + gamma / K; the gain
    of the drawn arm is x / p, that of the others 0; then w_i <- w_i exp(gamma gain_i / K) + (e alpha / K) sum w. The
    last term keeps every weight large enough to come back, so that the best arm may change. Only ratios of weights
    matter, so their logarithms are kept, the largest 0.

    Rewards x are brought to [0, 1] between the 20 % and the 80 % quantile of a reservoir of those seen (Graves et al.
    2017, "Automated Curriculum Learning for Neural Networks", https://arxiv.org/abs/1704.03003, on reward scaling;
    they scale to [-1, 1], Auer et al. need [0, 1]).

    Args:
        arms: K, at least 2.
        gamma: share of uniform exploration, in (0, 1].
        alpha: how fast weights are forgotten, at least 0; Auer et al. take 1 / (number of plays).
        reservoir: rewards that the quantiles are taken of, at least 2.

    Raises:
        InputError: a value out of its range.
    """

    kind = "exp3s"

    def __init__(self, arms: int, *, gamma: float = 0.1, alpha: float = 1e-3, reservoir: int = 1_000) -> None:
        if arms < 2 or not 0 < gamma <= 1 or not 0 <= alpha < math.inf or reservoir < 2:
            raise InputError(
                "EXP3.S needs `arms` and `reservoir` of at least 2, `gamma` in (0, 1] and `alpha` of at least 0, got "
                f"{arms}, {reservoir}, {gamma} and {alpha}."
            )
        self.arms, self.gamma, self.alpha, self.reservoir = arms, gamma, alpha, reservoir
        self._logs = [0.0] * arms
        self._rewards: list[float] = []
        self._seen = 0

    def probabilities(self, allowed: Sequence[bool]) -> list[float]:
        """Return how probable each arm is, over the allowed ones."""
        weights = [math.exp(log) if allow else 0.0 for log, allow in zip(self._logs, allowed, strict=True)]
        total, count = sum(weights), sum(allowed)
        return [
            (1 - self.gamma) * weight / total + self.gamma / count if allow else 0.0
            for weight, allow in zip(weights, allowed, strict=True)
        ]

    def draw(self, allowed: Sequence[bool], key: int) -> tuple[int, float]:
        """Return an arm and how probable it was."""
        probabilities, left = self.probabilities(allowed), rng.host_uniform(key, _ARM)
        arm = max(number for number, allow in enumerate(allowed) if allow)
        for number, probability in enumerate(probabilities):
            left -= probability
            if left < 0:
                arm = number
                break
        return arm, probabilities[arm]

    def learn(self, plays: Sequence[tuple[int, float]], reward: float, key: int) -> None:
        """Keep the reward for the quantiles, then move the weights."""
        self._keep(reward, key)
        scaled = self._scaled(reward)
        gains = [0.0] * self.arms
        for arm, probability in plays:
            gains[arm] += scaled / probability / len(plays)
        grown = [math.exp(log + self.gamma * gain / self.arms) for log, gain in zip(self._logs, gains, strict=True)]
        shared = math.e * self.alpha / self.arms * sum(math.exp(log) for log in self._logs)
        logs = [math.log(weight + shared) for weight in grown]
        self._logs = [log - max(logs) for log in logs]

    def best(self) -> int:
        """Return the arm with the largest weight."""
        return self._logs.index(max(self._logs))

    def document(self) -> dict[str, Any]:
        """Return settings and weights."""
        return {
            "kind": self.kind,
            "settings": {
                "arms": self.arms,
                "gamma": self.gamma,
                "alpha": self.alpha,
                "reservoir": self.reservoir,
            },
            "state": {"logs": self._logs, "rewards": self._rewards, "seen": self._seen},
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Exp3S:
        """Return the rule that `document` described."""
        rule, state = cls(**document["settings"]), document["state"]
        rule._logs, rule._rewards, rule._seen = list(state["logs"]), list(state["rewards"]), int(state["seen"])
        return rule

    def _keep(self, reward: float, key: int) -> None:
        """Keep a uniform sample of all rewards (Vitter 1985, https://doi.org/10.1145/3147.3165, algorithm R)."""
        self._seen += 1
        if len(self._rewards) < self.reservoir:
            self._rewards.append(reward)
            return
        place = rng.host_integer(key, _KEPT, self._seen)
        if place < self.reservoir:
            self._rewards[place] = reward

    def _scaled(self, reward: float) -> float:
        seen = torch.tensor(self._rewards, dtype=torch.float64)
        low, high = torch.quantile(seen, torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
        return min(1.0, max(0.0, (reward - low) / (high - low))) if high > low else 0.5


@final
class Thompson(AbstractRule):
    """Thompson sampling with discounts for Gaussian rewards.

    Raj and Kalyani 2017, "Taming Non-stationary Bandits: A Bayesian Approach" (https://arxiv.org/abs/1707.09727)
    discount the evidence on all arms at each play, whether drawn or not; here with the conjugate normal posterior: of
    an arm with the discounted number n and sum s of rewards, the mean is N(s / v / q, 1 / q), q = 1 / prior^2 + n / v,
    where v = noise^2.

    Args:
        arms: K, at least 2.
        discount: factor of the evidence at each training, in (0, 1]; 1 forgets nothing.
        prior: standard deviation of an arm's mean before anything is seen, around 0 (uniform random mixing).
        noise: standard deviation of a reward around its arm's mean.

    Raises:
        InputError: a value out of its range.
    """

    kind = "thompson"

    def __init__(self, arms: int, *, discount: float = 0.999, prior: float = 1.0, noise: float = 1.0) -> None:
        if arms < 2 or not 0 < discount <= 1 or not 0 < prior < math.inf or not 0 < noise < math.inf:
            raise InputError(
                "Thompson sampling needs `arms` of at least 2, `discount` in (0, 1], and `prior` and `noise` above 0, "
                f"got {arms}, {discount}, {prior} and {noise}."
            )
        self.arms, self.discount, self.prior, self.noise = arms, discount, prior, noise
        self._counts, self._sums = [0.0] * arms, [0.0] * arms

    def posterior(self) -> list[tuple[float, float]]:
        """Return mean and standard deviation of each arm's mean."""
        variance = self.noise**2
        precisions = [1 / self.prior**2 + count / variance for count in self._counts]
        return [(total / variance / q, q**-0.5) for total, q in zip(self._sums, precisions, strict=True)]

    def draw(self, allowed: Sequence[bool], key: int) -> tuple[int, float]:
        """Return the allowed arm whose drawn mean is the largest; its probability is not needed."""
        normal = rng.normal(torch.tensor([key]), _ARM, (self.arms,))[0].tolist()
        drawn = [
            mean + deviation * number if allow else -math.inf
            for (mean, deviation), number, allow in zip(self.posterior(), normal, allowed, strict=True)
        ]
        return drawn.index(max(drawn)), 1.0

    def learn(self, plays: Sequence[tuple[int, float]], reward: float, key: int) -> None:
        """Discount all evidence and add that of this training."""
        self._counts = [self.discount * count for count in self._counts]
        self._sums = [self.discount * total for total in self._sums]
        for arm, _ in plays:
            self._counts[arm] += 1 / len(plays)
            self._sums[arm] += reward / len(plays)

    def best(self) -> int:
        """Return the arm with the largest posterior mean."""
        means = [mean for mean, _ in self.posterior()]
        return means.index(max(means))

    def document(self) -> dict[str, Any]:
        """Return settings and evidence."""
        return {
            "kind": self.kind,
            "settings": {
                "arms": self.arms,
                "discount": self.discount,
                "prior": self.prior,
                "noise": self.noise,
            },
            "state": {"counts": self._counts, "sums": self._sums},
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Thompson:
        """Return the rule that `document` described."""
        rule, state = cls(**document["settings"]), document["state"]
        rule._counts, rule._sums = list(state["counts"]), list(state["sums"])
        return rule


_RULES: Mapping[str, Callable[[Mapping[str, Any]], AbstractRule]] = {Exp3S.kind: Exp3S.of, Thompson.kind: Thompson.of}


@final
class BanditAgent(AbstractAgent):
    """Chooses by a bandit's rule, whatever it observes.

    Args:
        rule: with one arm for each entry.
        catalogue: what actions mean.
        redraw: "training" draws one entry for the whole training, "decision" a new one at each decision.
        seed: in [0, 2**63).

    Raises:
        InputError: a rule with another number of arms, another `redraw`, or a seed out of range.
    """

    def __init__(self, rule: AbstractRule, catalogue: Catalogue, *, redraw: Redraw = "training", seed: int = 0) -> None:
        if rule.arms != len(catalogue) or redraw not in ("training", "decision") or not 0 <= seed < 2**63:
            raise InputError(
                f"a bandit needs a rule with {len(catalogue)} arms, `redraw` of training or decision and `seed` in "
                f"[0, 2**63), got {rule.arms} arms, {redraw!r} and {seed}."
            )
        self.rule, self.catalogue, self.redraw, self.seed = rule, catalogue, redraw, seed
        self._waves = 0
        # Of the decisions of this wave: each row's arm and how probable it was. `_drawn` is not yet observed.
        self._plays: list[list[tuple[int, float]]] = []
        self._drawn: list[float] = []

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the drawn entries, int64 [N]; masked ones are never drawn."""
        count = len(observations)
        allowed = [[True] * self.rule.arms] * count if mask is None else mask.tolist()
        decision = len(self._plays) if self.redraw == "decision" else 0
        keys = [rng.derive(self.seed, _ARM, self._waves, row, decision) for row in range(count)]
        drawn = [self.rule.draw(row, key) for row, key in zip(allowed, keys, strict=True)]
        self._drawn = [probability for _, probability in drawn]
        return torch.tensor([arm for arm, _ in drawn], dtype=torch.int64, device=observations.device)

    def observe(self, feedback: Feedback) -> None:
        """Note the actions; at the end of a wave learn from each of its trainings, in the order of the rows.

        Raises:
            InputError: `act` was not called for these trainings.
        """
        if len(self._drawn) != len(feedback.actions):
            raise InputError(f"{len(self._drawn)} entries were drawn, {len(feedback.actions)} were used.")
        self._plays.append(list(zip(feedback.actions.tolist(), self._drawn, strict=True)))
        if not feedback.done:
            return
        for row, reward in enumerate(feedback.rewards.tolist()):
            key = rng.derive(self.seed, _KEPT, self._waves, row)
            self.rule.learn([plays[row] for plays in self._plays], reward, key)
        self._plays, self._waves = [], self._waves + 1

    def best(self) -> FixedAgent:
        """Return the agent that always chooses what is now believed to be the best entry."""
        return FixedAgent(self.catalogue.names[self.rule.best()], self.catalogue)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent as JSON, in the middle of a wave too."""
        fields = {
            "rule": self.rule.document(),
            "redraw": self.redraw,
            "seed": self.seed,
            "waves": self._waves,
            "plays": self._plays,
            "drawn": self._drawn,
            "catalogue": self.catalogue.to_json(),
        }
        write(path, "bandit", fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BanditAgent:
        """Read what `save` wrote; it goes on bit for bit.

        Raises:
            PolicyError: the file is missing, damaged or of another agent.
        """
        document = read(path, "bandit", {"rule", "redraw", "seed", "waves", "plays", "drawn", "catalogue"})
        try:
            rule = _RULES[document["rule"]["kind"]](document["rule"])
            catalogue = Catalogue.from_json(document["catalogue"])
            agent = cls(rule, catalogue, redraw=document["redraw"], seed=document["seed"])
            agent._waves, agent._drawn = int(document["waves"]), [float(value) for value in document["drawn"]]
            agent._plays = [[(int(arm), float(p)) for arm, p in decision] for decision in document["plays"]]
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"`{path}` is no bandit ({error!r}). Give a file that `save` wrote.") from error
        return agent


def learn_online(
    agent: AbstractAgent,
    instances: InstanceSet,
    *,
    waves: int,
    actors: int = 64,
    first_wave: int = 0,
    seed: int = 0,
    catalogue: Catalogue,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> list[float]:
    """Let an agent act and observe, wave after wave, with the environment's reward.

    Args:
        agent: whose actions are entries of `catalogue`.
        instances: what is trained.
        waves: how many waves.
        actors: trainings in one wave.
        first_wave: number of the first wave; an agent that was saved after `n` waves goes on with n.
        seed: slot i picks by seed + i, as in `train_ppo`.
        catalogue: what actions mean.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.

    Returns:
        The mean reward of each wave.

    Raises:
        DataError: images are missing.
        EnvError: the catalogue has no uniform mixture, or `actors` is below 1.
    """
    pool = Pool(
        instances,
        seeds=range(seed, seed + actors),
        catalogue=catalogue,
        data_dir=data_dir,
        device=device,
        progress=reference_bar(),
    )
    pool.seed(pool.seeds, first_wave)
    means = []
    for _ in range(waves):
        observations, done = pool.reset().cpu(), False
        while not done:
            actions = agent.act(observations)
            following, rewards, done, _ = pool.step(actions)
            observations = following.cpu()
            agent.observe(Feedback(actions=actions, observations=observations, rewards=rewards.cpu(), done=done))
        means.append(float(rewards.mean()))
    return means
