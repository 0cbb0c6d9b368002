"""Agents without learning: one entry for the whole training, or one for each range of budgets.

Uniform random mixing is a fixed agent too: its entry is the catalogue's mixture over all methods.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix.agents.agent import AbstractAgent, Feedback, first_allowed
from rlmix.agents.baselines.documents import read, write
from rlmix.envs import reward
from rlmix.policy.codec import Catalogue
from rlmix.policy.signals import names

Measure: TypeAlias = Literal["steps", "epochs"]

# The observation entries that a budget is read from.
_BUDGET = ("time/epochs", "context/n", "context/batch", "has/n")


def uniform_entry(catalogue: Catalogue) -> str:
    """Return the name of the entry that mixes at random, the one that the environment's reward compares with.

    Raises:
        EnvError: the catalogue has no mixture.
    """
    return catalogue.names[reward.uniform_entry(catalogue)]


@final
@dataclass(frozen=True, slots=True)
class FixedAgent(AbstractAgent):
    """Chooses the same entry always.

    Args:
        entry: name of the entry.
        catalogue: what actions mean.

    Raises:
        UnknownNameError: the catalogue has no such entry.
    """

    entry: str
    catalogue: Catalogue

    def __post_init__(self) -> None:
        """Check the entry's name."""
        self.catalogue.index(self.entry)

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the entry for each row, int64 [N]; where it is masked, the first allowed one."""
        index = self.catalogue.index(self.entry)
        chosen = torch.full((len(observations),), index, dtype=torch.int64, device=observations.device)
        return first_allowed(chosen, mask)

    def observe(self, feedback: Feedback) -> None:
        """Learn nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent as JSON."""
        write(path, "fixed", {"entry": self.entry, "catalogue": self.catalogue.to_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FixedAgent:
        """Read what `save` wrote.

        Raises:
            PolicyError: the file is missing, damaged or of another agent.
        """
        document = read(path, "fixed", {"entry", "catalogue"})
        return cls(document["entry"], Catalogue.from_json(document["catalogue"]))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRanges:
    """Ranges that budgets fall into.

    Attributes:
        measure: what a budget is measured in.
        bounds: ascending limits between the ranges; a budget that equals a limit belongs to the lower range.
    """

    measure: Measure
    bounds: tuple[float, ...]

    def bucket(self, *, steps: float, epochs: float) -> int:
        """Return the number of the range that a training of that budget is in, from 0."""
        budget = steps if self.measure == "steps" else epochs
        return sum(budget > bound for bound in self.bounds)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLookup:
    """One entry for each range of budgets.

    Attributes:
        ranges: the ranges.
        entries: name of a catalogue entry for each of them.
    """

    ranges: BudgetRanges
    entries: tuple[str, ...]

    def entry(self, *, steps: float, epochs: float) -> str:
        """Return the entry for a training of that budget."""
        return self.entries[self.ranges.bucket(steps=steps, epochs=epochs)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BestFixedPerBudget(AbstractAgent):
    """Looks the entry up by the budget that the observation tells; where it tells none, chooses `otherwise`.

    Args:
        lookup: entries by budget.
        otherwise: entry for trainings whose number of examples is unknown.
        catalogue: what actions mean.

    Raises:
        UnknownNameError: the catalogue has no such entry.
    """

    lookup: BudgetLookup
    otherwise: str
    catalogue: Catalogue

    def __post_init__(self) -> None:
        """Check the names of the entries."""
        for entry in (*self.lookup.entries, self.otherwise):
            self.catalogue.index(entry)

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the entries, int64 [N]."""
        columns = [names(self.catalogue).index(name) for name in _BUDGET]
        rows: list[list[float]] = observations[:, columns].double().tolist()
        chosen = [self.catalogue.index(self._entry(*row)) for row in rows]
        return first_allowed(torch.tensor(chosen, dtype=torch.int64, device=observations.device), mask)

    def observe(self, feedback: Feedback) -> None:
        """Learn nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent as JSON."""
        fields = {
            "measure": self.lookup.ranges.measure,
            "bounds": list(self.lookup.ranges.bounds),
            "by_budget": list(self.lookup.entries),
            "otherwise": self.otherwise,
            "catalogue": self.catalogue.to_json(),
        }
        write(path, "best-fixed-per-budget", fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BestFixedPerBudget:
        """Read what `save` wrote.

        Raises:
            PolicyError: the file is missing, damaged or of another agent.
        """
        known = {"measure", "bounds", "by_budget", "otherwise", "catalogue"}
        document = read(path, "best-fixed-per-budget", known)
        ranges = BudgetRanges(measure=document["measure"], bounds=tuple(document["bounds"]))
        return cls(
            lookup=BudgetLookup(ranges=ranges, entries=tuple(document["by_budget"])),
            otherwise=document["otherwise"],
            catalogue=Catalogue.from_json(document["catalogue"]),
        )

    def _entry(self, epochs: float, examples: float, batch: float, known: float) -> str:
        """Invert the observation's transforms and look the entry up."""
        if known <= 0:
            return self.otherwise
        total_epochs = 10.0 ** (epochs + 1.0) - 1.0
        num_examples = 10.0 ** (1.5 * examples + 3.0)
        batch_size = 2.0 ** (4.0 * (batch + 1.5))
        return self.lookup.entry(steps=total_epochs * num_examples / batch_size, epochs=total_epochs)
