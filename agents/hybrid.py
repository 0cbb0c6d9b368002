"""The hybrid action head: a method, and the parameters that it uses, for PPO of stable-baselines3 as it is.

A policy is Categorical over methods x Beta over the parameters of the chosen one (parameterised actions: Fan et al.
2019, https://arxiv.org/abs/1903.01344; Beta policies for bounded actions: Chou et al. 2017, and Petrazzini and Antonelo
2021, https://arxiv.org/abs/2111.02202). Parameters that the method does not use have no part in probability or entropy.

Densities are taken over the parameters' shares u in [0, 1] of their ranges. Actions are a = 2 u - 1, so a density over
actions would be smaller by a factor of 2 for each used parameter. It depends on the method alone and cancels in
PPO's ratio; in the entropy it would reward methods for having parameters. As it is, the largest entropy is log M: all
methods equally probable, each parameter uniform.
"""

from __future__ import annotations

from typing import Any, final

import torch
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.distributions import Beta, Categorical

from rlmix.policy.parametric import HybridCodec, chosen


@final
class HybridDistribution(CategoricalDistribution):
    """Distribution over actions [N, 1 + P] of a `HybridCodec`.

    Args:
        codec: what the actions mean.

    Attributes:
        distribution: of the methods, Categorical over M.
        parameters: of the parameters' shares, Beta over [N, M, P].
    """

    def __init__(self, codec: HybridCodec) -> None:
        super().__init__(len(codec.space))
        self.codec = codec
        self.parameters: Beta
        self._used = torch.tensor(codec.space.used, dtype=torch.float32).view(len(codec.space), codec.space.slots)

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """Return the layer that gives the outputs: logits [M] and two numbers for each parameter [M, P, 2]."""
        return nn.Linear(latent_dim, self.codec.outputs)

    def proba_distribution(self, action_logits: Tensor) -> HybridDistribution:
        """Take the layer's outputs, [N, M + 2 M P]."""
        self.distribution = Categorical(logits=action_logits[:, : self.action_dim], validate_args=False)
        self.parameters = Beta(*self.codec.concentrations(action_logits), validate_args=False)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log p(method) + the sum of log Beta(u) over the parameters that it uses, [N]."""
        entries, shares, used = self.codec.parts(actions)
        alpha, beta = (chosen(part, entries) for part in self._concentrations())
        densities: Tensor = Beta(alpha, beta, validate_args=False).log_prob(shares)  # type: ignore[no-untyped-call]
        methods: Tensor = self.distribution.log_prob(entries)  # type: ignore[no-untyped-call]
        return methods + (densities * used).sum(1)

    def entropy(self) -> Tensor:
        """Return H(method) + the sum over methods of p(method) times its used parameters' entropies, [N]."""
        entropies: Tensor = self.parameters.entropy()  # type: ignore[no-untyped-call]
        methods: Tensor = self.distribution.entropy()  # type: ignore[no-untyped-call]
        inner = (entropies * self._used.to(entropies.device)).sum(2)
        return methods + (self.distribution.probs * inner).sum(1)

    def sample(self) -> Tensor:
        """Return drawn actions, [N, 1 + P]; unused parameters are 0."""
        entries = self.distribution.sample()  # type: ignore[no-untyped-call]
        alpha, beta = (chosen(part, entries) for part in self._concentrations())
        return self.codec.actions(entries, Beta(alpha, beta, validate_args=False).sample())

    def mode(self) -> Tensor:
        """Return the most probable method with the mean of each of its parameters, [N, 1 + P]."""
        entries = self.distribution.logits.argmax(1)
        return self.codec.actions(entries, chosen(self.parameters.mean, entries))

    def _concentrations(self) -> tuple[Tensor, Tensor]:
        return self.parameters.concentration1, self.parameters.concentration0


@final
class HybridPolicy(ActorCriticPolicy):
    """Actor and critic with the hybrid head; nothing else differs from `MlpPolicy`.

    Args:
        codec: what the actions mean; its shape must be that of the action space.
        arguments: those of `ActorCriticPolicy`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> PPO(HybridPolicy, env, policy_kwargs={"codec": codec})  # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, codec: HybridCodec, **named: Any) -> None:
        # Asked for by `_build`, which the base class's constructor calls.
        self._codec = codec
        super().__init__(*arguments, **named)

    def _build(self, lr_schedule: Schedule) -> None:
        self.action_dist = HybridDistribution(self._codec)
        super()._build(lr_schedule)
