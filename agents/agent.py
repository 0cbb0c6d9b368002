"""The interface of agents, and the agent that a learned policy is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from rlmix.policy.artifact import LearnedPolicy, load, save
from rlmix.policy.codec import AbstractCodec, Catalogue


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What an agent may learn from after a decision interval.

    Attributes:
        actions: int64 [N], the entries that were used; of other codecs what was done, [N, *shape].
        observations: float32 [N, D] at the end of the interval.
        rewards: float32 [N].
        done: whether the trainings ended.
    """

    actions: Tensor
    observations: Tensor
    rewards: Tensor
    done: bool


class AbstractAgent(ABC):
    """Chooses a catalogue entry for each of N trainings, from observations alone."""

    @abstractmethod
    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the chosen entries, int64 [N].

        Args:
            observations: float32 [N, D], the entries of the environment in its order.
            mask: bool [N, E], True where an entry may be chosen; None allows all.
        """

    @abstractmethod
    def observe(self, feedback: Feedback) -> None:
        """Learn from the interval that followed the last `act`."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent to `path`; nothing is pickled.

        Raises:
            OutputError: `path` cannot be written.
        """


@final
class LearnedAgent(AbstractAgent):
    """A learned policy that acts by its mode.

    Args:
        policy: the policy.
        observation_names: names of the environment's observation entries, in its order.

    Raises:
        PolicyError: the policy reads an entry that the environment does not have.
    """

    def __init__(self, policy: LearnedPolicy, observation_names: Sequence[str]) -> None:
        self.policy = policy
        self._columns = policy.columns(tuple(observation_names))

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the most probable allowed entries, int64 [N]; of other codecs the actions, [N, *shape]."""
        return self.policy.act(observations[:, self._columns], mask)

    def observe(self, feedback: Feedback) -> None:
        """Learn nothing: the policy is fixed."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy directory."""
        save(path, self.policy)

    @classmethod
    def load(cls, path: str | os.PathLike[str], observation_names: Sequence[str]) -> LearnedAgent:
        """Load a policy directory.

        Raises:
            PolicyError: the directory is damaged or of another kind.
        """
        return cls(load(path), observation_names)


@final
class EncodedAgent(AbstractAgent):
    """An agent that chooses from a catalogue, among agents whose actions set parameters.

    Its entries are written as such actions, so that both kinds train side by side. It sees their observations, which
    begin as its own do, but remember other entries.

    Args:
        agent: the agent.
        catalogue: what its actions mean.
        codec: what all actions mean where it is to act.

    Raises:
        UnknownNameError: an entry that no action means.
        InputError: an entry with a parameter out of the range that actions reach.
    """

    def __init__(self, agent: AbstractAgent, catalogue: Catalogue, codec: AbstractCodec) -> None:
        self.agent = agent
        encoded = [codec.encode(decision) for decision in catalogue.decisions]
        self._actions = torch.tensor(encoded, dtype=torch.int64 if codec.whole else torch.float32)

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the agent's choices as actions, [N, *shape]; the mask is for its own entries."""
        return self._actions[self.agent.act(observations, mask).cpu()]

    def observe(self, feedback: Feedback) -> None:
        """Tell the agent, with the entries that its actions stand for."""
        own = feedback.actions.unsqueeze(1) == self._actions
        entries = own.flatten(2).all(2) if own.dim() > 2 else own
        self.agent.observe(replace(feedback, actions=entries.int().argmax(1)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent itself."""
        self.agent.save(path)


def first_allowed(entries: Tensor, mask: Tensor | None) -> Tensor:
    """Return `entries`, and where the mask forbids one, the first entry that it allows.

    Args:
        entries: int64 [N].
        mask: bool [N, E] or None.
    """
    if mask is None:
        return entries
    allowed = mask.gather(1, entries.unsqueeze(1)).squeeze(1)
    return torch.where(allowed, entries, mask.to(torch.int8).argmax(1))
