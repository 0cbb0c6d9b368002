"""PPO on recorded decisions, for the network that is deployed.

stable-baselines3 updates its own model from an environment that it steps itself. Decisions of a policy service were
taken elsewhere, hours ago, partly by earlier versions of the policy. On decisions of the present version an update is
the same as theirs (a test holds them together to 1e-6); the paper is Schulman et al. 2017
(https://arxiv.org/abs/1707.06347).

Decisions of an earlier version count with an importance weight: how much more probable they are under the network as it
stands at the beginning of the update than when they were taken, at most `WEIGHT_LIMIT`. The weight is a constant of the
update; PPO's clip is around the network at its beginning, not around the earlier version, so that old decisions are
learned from and an update still gains nothing by going beyond the clip from where it began (the decoupled objective of
Hilton et al. 2022, https://arxiv.org/abs/2110.00641).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlmix.errors import ConfigError, InputError
from rlmix.policy.network import Layers, PolicyNetwork

WEIGHT_LIMIT = 2.0
"""The largest importance weight: a decision that has become very probable must not outweigh all others."""

# As in stable-baselines3: weight of the critic's loss, largest norm of a gradient, Adam's epsilon.
_CRITIC = 0.5
_NORM = 0.5
_EPSILON = 1e-5


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """How an update is made.

    Attributes:
        epochs: passes over the decisions, at least 1.
        batch_size: the most decisions in a minibatch, at least 2; minibatches of a pass have equal sizes, give or take
            one.
        clip: largest change of a probability ratio that is rewarded, in (0, 1).
        entropy: weight of the entropy bonus, at least 0.
        gae_lambda: decay of the advantage estimate, in [0, 1].

    Raises:
        ConfigError: a value out of its range.
    """

    epochs: int = 8
    batch_size: int = 128
    clip: float = 0.2
    entropy: float = 0.01
    gae_lambda: float = 0.97

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(
                f"`epochs` must be at least 1 and `batch_size` at least 2, got {self.epochs} and {self.batch_size}."
            )
        if not (0 < self.clip < 1 and 0 <= self.gae_lambda <= 1 and 0 <= self.entropy < math.inf):
            raise ConfigError(
                "`clip` must be in (0, 1), `gae_lambda` in [0, 1] and `entropy` at least 0, got "
                f"{self.clip}, {self.gae_lambda} and {self.entropy}."
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Decisions of one training after the other, each in order.

    Attributes:
        observations: float32 [N, D], what the network reads.
        allowed: bool [N, E], the entries that could be chosen.
        entries: int64 [N], those that were.
        log_probabilities: float32 [N], with which they were drawn; NaN where they were not drawn.
        rewards: float32 [N], what came of them before the next decision; NaN where that, or the next decision, is not
            known.
        ends: bool [N], the last decisions of their trainings; the last of all is one.

    Raises:
        InputError: shapes that do not fit each other, or a last row that is no end.
    """

    observations: Tensor
    allowed: Tensor
    entries: Tensor
    log_probabilities: Tensor
    rewards: Tensor
    ends: Tensor

    def __post_init__(self) -> None:
        """Check the shapes."""
        rows = len(self.observations)
        lengths = [len(one) for one in (self.allowed, self.entries, self.log_probabilities, self.rewards, self.ends)]
        if not rows or lengths != [rows] * 5 or not bool(self.ends[-1]):
            raise InputError(
                f"a batch has one or more rows, of everything as many, and ends with an end; got {rows} observations "
                f"and {lengths}."
            )

    @property
    def known(self) -> Tensor:
        """The decisions that something can be learned about, bool [N]: drawn, and it is known what came of them."""
        return torch.isfinite(self.log_probabilities) & torch.isfinite(self.rewards)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatistics:
    """What an update did: means over its minibatches, before each step.

    Attributes:
        decisions: how many were learned from.
        entropy: of the policy, in nats.
        clipped: share of probability ratios beyond the clip.
        limited: share of importance weights at their limit.
        value_loss: mean squared error of the critic.
    """

    decisions: int
    entropy: float
    clipped: float
    limited: float
    value_loss: float


def trainable(network: PolicyNetwork) -> PolicyNetwork:
    """Return a copy whose weights an optimiser can change.

    Raises:
        ConfigError: the network has no critic, without which nothing is learned.
    """
    if network.critic is None:
        raise ConfigError(
            "the policy has no critic: it can be served, not trained. Begin with one that has, as `rlmix policy new` "
            "and `rlmix agent train` make them."
        )
    return PolicyNetwork(actor=_copied(network.actor), critic=_copied(network.critic))


def optimizer_of(network: PolicyNetwork, learning_rate: float) -> torch.optim.Adam:
    """Return an Adam for a network that `trainable` made, actor first.

    Raises:
        ConfigError: `learning_rate` is not a finite number above 0.
    """
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"`learning_rate` must be a finite number above 0, got {learning_rate}.")
    return torch.optim.Adam(_parameters(network), lr=learning_rate, eps=_EPSILON)


def ppo_update(
    network: PolicyNetwork,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    options: UpdateOptions,
    *,
    generator: torch.Generator,
) -> UpdateStatistics:
    """Change a network in place so that what turned out well becomes more probable.

    Args:
        network: made by `trainable`.
        optimizer: of its weights.
        batch: recorded decisions; those that are not `known` are not learned about.
        options: how.
        generator: orders the decisions.

    Raises:
        InputError: nothing can be learned from the batch.
    """
    known = batch.known
    if not bool(known.any()):
        raise InputError("none of the decisions was drawn by a policy and has a known outcome. Give others.")
    advantages, returns = advantages_of(network, batch, options.gae_lambda)
    rows = known.nonzero().squeeze(1)
    observations, allowed, entries = batch.observations[rows], batch.allowed[rows], batch.entries[rows]
    with torch.no_grad():
        before, _ = _weighed(network, observations, allowed, entries)
        weights = (before - batch.log_probabilities[rows]).exp()
    limited = float((weights > WEIGHT_LIMIT).float().mean())
    weights = weights.clamp_max(WEIGHT_LIMIT)
    told: list[Tensor] = []
    for _ in range(options.epochs):
        order = torch.randperm(len(rows), generator=generator)
        for part in order.tensor_split(-(-len(rows) // options.batch_size)):
            after, entropy = _weighed(network, observations[part], allowed[part], entries[part])
            ratio = (after - before[part]).exp()
            gain = _normalised(advantages[rows][part])
            surrogate = torch.min(gain * ratio, gain * ratio.clamp(1 - options.clip, 1 + options.clip))
            error = functional.mse_loss(_values(network, observations[part]), returns[rows][part])
            loss = -(weights[part] * surrogate).mean() - options.entropy * entropy.mean() + _CRITIC * error
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            nn.utils.clip_grad_norm_(_parameters(network), _NORM)
            optimizer.step()
            beyond = ((ratio - 1).abs() > options.clip).float().mean()
            told.append(torch.stack([entropy.mean(), beyond, error]).detach())
    entropy_mean, clipped, value_loss = torch.stack(told).mean(0).tolist()
    return UpdateStatistics(
        decisions=len(rows), entropy=entropy_mean, clipped=clipped, limited=limited, value_loss=value_loss
    )


def advantages_of(network: PolicyNetwork, batch: Batch, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, float32 [N], by GAE(lambda) without discount (Schulman et al. 2016).

    The critic is that of the network as it is now. Where the next decision is not `known`, its value stands for all
    that came later: what follows an unknown decision says nothing of the one before. NaN where what came of the
    decision itself is not known.

    Args:
        network: actor and critic.
        batch: recorded decisions.
        gae_lambda: decay, in [0, 1].
    """
    values = network.value(batch.observations).tolist()
    rewards, ends, known = batch.rewards.tolist(), batch.ends.tolist(), batch.known.tolist()
    advantages = [0.0] * len(values)
    for row in reversed(range(len(values))):
        later = 0.0
        if not ends[row]:
            later = values[row + 1] + (gae_lambda * advantages[row + 1] if known[row + 1] else 0.0)
        advantages[row] = rewards[row] + later - values[row]
    found = torch.tensor(advantages)
    return found, found + torch.tensor(values)


def entries_and_values(network: PolicyNetwork, observations: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [N, E] (minus infinity where forbidden) and values [N], as the update computes them."""
    with torch.no_grad():
        return _log_probabilities(network, observations, allowed), _values(network, observations)


def _weighed(network: PolicyNetwork, observations: Tensor, allowed: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of entries, and the entropy of each row, [N] each."""
    found = _log_probabilities(network, observations, allowed)
    # 0 log 0 is 0: minus infinity would give NaN.
    entropy = -(found.exp() * found.masked_fill(~allowed, 0.0)).sum(-1)
    return found.gather(-1, entries.unsqueeze(-1)).squeeze(-1), entropy


def _log_probabilities(network: PolicyNetwork, observations: Tensor, allowed: Tensor) -> Tensor:
    return _forward(network.actor, observations).masked_fill(~allowed, -math.inf).log_softmax(-1)


def _values(network: PolicyNetwork, observations: Tensor) -> Tensor:
    return _forward(network.critic or (), observations).squeeze(-1)


def _forward(layers: Layers, values: Tensor) -> Tensor:
    """Return what a perceptron answers, with its gradient, which the deployed network does without."""
    for weight, bias in layers[:-1]:
        values = functional.linear(values, weight, bias).tanh()
    weight, bias = layers[-1]
    return functional.linear(values, weight, bias)


def _normalised(advantages: Tensor) -> Tensor:
    """Return advantages of mean 0 and deviation 1; a single one as it is."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def _copied(layers: Layers) -> Layers:
    return tuple((_parameter(weight), _parameter(bias)) for weight, bias in layers)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())


def _parameters(network: PolicyNetwork) -> list[Tensor]:
    return [values for layers in (network.actor, network.critic or ()) for pair in layers for values in pair]
