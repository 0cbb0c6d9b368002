"""Who decides: always the same, a schedule, or a learned policy."""

from __future__ import annotations

import functools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from torch import Tensor

from rlmix.errors import InputError, UnknownNameError, nearest
from rlmix.methods import registry
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams
from rlmix.policy.artifact import DEFAULT, LearnedPolicy, load
from rlmix.policy.codec import AbstractCodec, codec_of
from rlmix.policy.decision import Decision
from rlmix.policy.limits import Facts, limits_of
from rlmix.policy.observer import AbstractObserver, Blind, Observer, Training


class AbstractSource(ABC):
    """Chooses one of its entries at each of its decisions.

    Attributes:
        names: the entries' names.
        decisions: what they mean.
        methods: the methods, built once.
        stands_in: whether these are the entries of something that stands in for the source that was asked for, so
            that their names may be others.
        codec: what the choices mean, of a source that looks at the training; the processes of a distributed training
            then go by the choices of the first. None of others, which choose alike everywhere.
        ahead: how many steps before a decision is due it wants to see the training.
    """

    names: tuple[str, ...]
    decisions: tuple[Decision, ...]
    methods: tuple[AbstractMethod, ...]
    stands_in: bool = False
    codec: AbstractCodec | None = None
    ahead: int = 0

    @abstractmethod
    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return the steps at which it decides, ascending, the first 0."""

    @abstractmethod
    def observer(self, training: Training) -> AbstractObserver:
        """Return what makes its observations of one training."""

    @abstractmethod
    def prepare(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> None:
        """Take notice of what `choose` will be asked in a few steps (of a source with `ahead`)."""

    @abstractmethod
    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the position of the chosen entry.

        Args:
            number: of the decision, from 0.
            observation: what its observer saw.
            allowed: bool [E]; a source that does not choose may return another.
            explore: a key to draw with, or None for the most probable entry.
        """

    @abstractmethod
    def decision(self, entry: int, observation: Tensor | None, explore: Streams | None) -> Decision:
        """Return what choosing an entry means now: the entry's Decision, but for parameters that a policy sets.

        Args:
            entry: the position that `choose` returned.
            observation: as for `choose`.
            explore: as for `choose`.
        """

    @abstractmethod
    def probabilities(self, observation: Tensor | None, allowed: Tensor) -> Tensor | None:
        """Return how probable each entry was, float32 [E], or None where nothing was weighed."""

    @abstractmethod
    def outside(self, facts: Facts) -> tuple[int, str] | None:
        """Return which entry to keep to in a training that it should not decide for, and why; None if it should."""

    @abstractmethod
    def report(self, number: int, values: Mapping[str, float]) -> None:
        """Take notice of what came of a decision; a source that learns nothing from it forgets it."""

    @abstractmethod
    def state(self) -> Any:
        """Return a tree to go on from, for a checkpoint; None where there is nothing to remember."""

    @abstractmethod
    def load_state(self, state: Any) -> None:
        """Go on from what `state` returned."""

    @abstractmethod
    def close(self, *, finished: bool, failed: bool = False) -> Mapping[str, int]:
        """Let go of what it holds, and return how many decisions came from where; empty where there is one place.

        Args:
            finished: whether the training came to its end.
            failed: whether an error ended it.
        """


@final
class Fixed(AbstractSource):
    """Always the same.

    Args:
        method: a Decision, a method, or a method's name.

    Raises:
        UnknownNameError: no method, or no parameter, of this name.
        MethodError: a parameter out of its range.
    """

    def __init__(self, method: Decision | AbstractMethod | str) -> None:
        decision, built = _decided(method)
        self.names, self.decisions, self.methods = (decision.text,), (decision,), (built,)

    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step."""
        return (0,)

    def observer(self, training: Training) -> AbstractObserver:
        """Return an observer that sees nothing."""
        return Blind()

    def prepare(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> None:
        """Do nothing."""

    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the one entry."""
        return 0

    def decision(self, entry: int, observation: Tensor | None, explore: Streams | None) -> Decision:
        """Return the entry's Decision."""
        return self.decisions[entry]

    def probabilities(self, observation: Tensor | None, allowed: Tensor) -> Tensor | None:
        """Return None."""
        return None

    def outside(self, facts: Facts) -> tuple[int, str] | None:
        """Return None."""
        return None

    def report(self, number: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def state(self) -> Any:
        """Return None."""

    def load_state(self, state: Any) -> None:
        """Do nothing."""

    def close(self, *, finished: bool, failed: bool = False) -> Mapping[str, int]:
        """Return that there is one place."""
        return {}


@final
class Schedule(AbstractSource):
    """One after another, by progress.

    Args:
        parts: pairs of a progress in [0, 1) from which on it holds, ascending from 0, and a Decision, a method or a
            method's name.

    Raises:
        InputError: no parts, or a progress out of order.
        UnknownNameError: no method, or no parameter, of this name.
        MethodError: a parameter out of its range.

    Example:
        >>> Schedule([(0, "cutmix"), (0.8, "none")]).points(100)
        (0, 80)
    """

    def __init__(self, parts: Sequence[tuple[float, Decision | AbstractMethod | str]]) -> None:
        self._starts = tuple(float(start) for start, _ in parts)
        ascending = all(first < second for first, second in zip(self._starts, self._starts[1:], strict=False))
        if not self._starts or self._starts[0] != 0 or not ascending or not self._starts[-1] < 1:
            raise InputError(f"a schedule begins at progress 0 and ascends below 1, got {list(self._starts)}.")
        decided = [_decided(method) for _, method in parts]
        self.decisions = tuple(decision for decision, _ in decided)
        self.methods = tuple(built for _, built in decided)
        self.names = tuple(decision.text for decision in self.decisions)

    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return the first step of each part; a part shorter than a step may share one with the next."""
        # Rounded first, since 0.07 * 100 is a little more than 7.
        return tuple(math.ceil(round(start * total_steps, 6)) for start in self._starts)

    def observer(self, training: Training) -> AbstractObserver:
        """Return an observer that sees nothing."""
        return Blind()

    def prepare(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> None:
        """Do nothing."""

    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the part of this number."""
        return number

    def decision(self, entry: int, observation: Tensor | None, explore: Streams | None) -> Decision:
        """Return the part's Decision."""
        return self.decisions[entry]

    def probabilities(self, observation: Tensor | None, allowed: Tensor) -> Tensor | None:
        """Return None."""
        return None

    def outside(self, facts: Facts) -> tuple[int, str] | None:
        """Return None."""
        return None

    def report(self, number: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def state(self) -> Any:
        """Return None."""

    def load_state(self, state: Any) -> None:
        """Do nothing."""

    def close(self, *, finished: bool, failed: bool = False) -> Mapping[str, int]:
        """Return that there is one place."""
        return {}


@final
class Learned(AbstractSource):
    """A learned policy.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: LearnedPolicy) -> None:
        self.policy = policy
        self.names, self.decisions = policy.catalogue.names, policy.catalogue.decisions
        self.methods = tuple(decision.build() for decision in self.decisions)
        self.codec = codec_of(policy.codec or policy.catalogue)
        self._limits = limits_of(policy.card, policy.catalogue)

    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return floor(j T / H) for the policy's horizon H."""
        horizon = self.policy.horizon
        return tuple(number * total_steps // horizon for number in range(horizon))

    def observer(self, training: Training) -> AbstractObserver:
        """Return an observer of what the policy reads."""
        return Observer(self.policy, training)

    def prepare(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> None:
        """Do nothing."""

    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the policy's choice."""
        return self.policy.answer(_seen(observation), allowed, explore)[0]

    def decision(self, entry: int, observation: Tensor | None, explore: Streams | None) -> Decision:
        """Return the entry's Decision, with the parameters that the policy gives it here."""
        return self.policy.decision(entry, _seen(observation), explore)

    def probabilities(self, observation: Tensor | None, allowed: Tensor) -> Tensor | None:
        """Return the policy's probabilities."""
        return self.policy.probabilities(_seen(observation), allowed)

    def outside(self, facts: Facts) -> tuple[int, str] | None:
        """Return the entry that the policy's card falls back to outside its limits."""
        broken = () if self._limits is None else self._limits.broken(facts)
        if self._limits is None or not broken:
            return None
        return self.names.index(self._limits.otherwise), "; ".join(broken)

    def report(self, number: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def state(self) -> Any:
        """Return None."""

    def load_state(self, state: Any) -> None:
        """Do nothing."""

    def close(self, *, finished: bool, failed: bool = False) -> Mapping[str, int]:
        """Return that there is one place."""
        return {}


@functools.singledispatch
def source(given: Any) -> AbstractSource:
    """Return who decides, of whatever a user may give.

    Args:
        given: a source, a learned policy or the path of its directory ("default" for the one of this package), a
            Decision, a method or a method's name.

    Raises:
        InputError: something else.
        PolicyError: a damaged policy directory.
        UnknownNameError: neither a method nor a directory of this name.
    """
    raise InputError(
        f"`source` must be a policy directory, a Decision, a method or its name, or a schedule, got "
        f"{type(given).__name__}."
    )


source.register(AbstractSource, lambda given: given)
source.register(LearnedPolicy, Learned)
source.register(Decision, Fixed)
source.register(AbstractMethod, Fixed)


@source.register
def _(given: os.PathLike) -> AbstractSource:  # type: ignore[type-arg]  # a generic cannot be dispatched on
    return Learned(load(given))


@source.register
def _(given: str) -> AbstractSource:
    if given in registry.names():
        return Fixed(given)
    if given == DEFAULT or Path(given).exists() or os.sep in given:
        return Learned(load(given))
    found = nearest(given, [*registry.names(), DEFAULT])
    raise UnknownNameError(f"`{given}` is neither a mix method nor an existing policy directory. {found}")


def _decided(method: Decision | AbstractMethod | str) -> tuple[Decision, AbstractMethod]:
    """Return a Decision and its method; of a method that is not registered, the method itself."""
    if isinstance(method, AbstractMethod):
        return Decision.of(method), method
    decision = Decision(method) if isinstance(method, str) else method
    return decision, decision.build()


def _seen(observation: Tensor | None) -> Tensor:
    if observation is None:
        raise InputError("a learned policy needs an observation.")
    return observation
