"""Agents that choose by the clock alone: hand schedules, and one random entry after another.

They read the progress of a training from the observation entry `time/progress`, so they switch at decisions: a change
at 80 % of the budget happens at the first decision at or after it. `rlmix.policy.sources.Schedule` is the same for a
deployed training, to the step.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rlmix.agents.agent import AbstractAgent, Feedback, first_allowed
from rlmix.agents.baselines.documents import read, write
from rlmix.errors import InputError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue
from rlmix.policy.signals import names

_PROGRESS = "time/progress"
# Progress comes rounded to a float32.
_TOLERANCE = 1e-6
# What the held entries are drawn for.
_HELD = 131


@final
@dataclass(frozen=True, slots=True)
class ScheduleAgent(AbstractAgent):
    """One entry after another, by progress.

    Args:
        parts: pairs of a progress in [0, 1) from which on it holds, ascending from 0, and the name of an entry.
        catalogue: what actions mean.

    Raises:
        InputError: no parts, or a progress out of order.
        UnknownNameError: the catalogue has no such entry.
    """

    parts: tuple[tuple[float, str], ...]
    catalogue: Catalogue

    def __post_init__(self) -> None:
        """Check order and names."""
        object.__setattr__(self, "parts", tuple((float(start), entry) for start, entry in self.parts))
        starts = [start for start, _ in self.parts]
        ascending = all(first < second for first, second in itertools.pairwise(starts))
        if not starts or starts[0] != 0 or not ascending or not starts[-1] < 1:
            raise InputError(f"a schedule begins at progress 0 and ascends below 1, got {starts}.")
        for _, entry in self.parts:
            self.catalogue.index(entry)

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the entries that hold at each row's progress, int64 [N]; where masked, the first allowed one."""
        starts = torch.tensor([start for start, _ in self.parts], dtype=torch.float64)
        entries = torch.tensor([self.catalogue.index(entry) for _, entry in self.parts])
        part = torch.searchsorted(starts - _TOLERANCE, progress_of(observations, self.catalogue), right=True) - 1
        return first_allowed(entries[part.clamp_min(0)].to(observations.device), mask)

    def observe(self, feedback: Feedback) -> None:
        """Learn nothing."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent as JSON."""
        parts = [[start, entry] for start, entry in self.parts]
        write(path, "schedule", {"parts": parts, "catalogue": self.catalogue.to_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScheduleAgent:
        """Read what `save` wrote.

        Raises:
            PolicyError: the file is missing, damaged or of another agent.
        """
        document = read(path, "schedule", {"parts", "catalogue"})
        parts = tuple((start, entry) for start, entry in document["parts"])
        return cls(parts, Catalogue.from_json(document["catalogue"]))


def mix_then_none(entry: str, catalogue: Catalogue, *, until: float) -> ScheduleAgent:
    """Return the schedule that mixes by `entry` first and not at all from progress `until` on.

    It is the outline, without the alternating middle part, of Yu et al. 2021, "Mixup Without Hesitation"
    (https://arxiv.org/abs/2101.04342), and what He et al. 2019, "Data Augmentation Revisited"
    (https://arxiv.org/abs/1909.09148), do with other augmentations: the last epochs see the images as they are.
    """
    return ScheduleAgent(((0.0, entry), (until, "none")), catalogue)


def warm_up(entry: str, catalogue: Catalogue, *, until: float) -> ScheduleAgent:
    """Return the schedule that does not mix at first and by `entry` from progress `until` on."""
    return ScheduleAgent(((0.0, "none"), (until, entry)), catalogue)


@final
class RandomHold(AbstractAgent):
    """Draws an entry at random, holds it for a part of the training, and draws the next.

    What a row gets is a function of the seed, the number of wholly observed waves before, the row and the part: an
    agent made anew, or loaded, repeats itself.

    Args:
        entries: names of the entries that it draws from.
        catalogue: what actions mean.
        parts: equal parts of a training, at least 1; 1 holds one entry for the whole training.
        seed: in [0, 2**63).

    Raises:
        InputError: no entry, `parts` below 1 or a seed out of range.
        UnknownNameError: the catalogue has no such entry.
    """

    def __init__(self, entries: Sequence[str], catalogue: Catalogue, *, parts: int, seed: int) -> None:
        if not entries or parts < 1 or not 0 <= seed < 2**63:
            raise InputError(
                f"a random hold needs entries, `parts` of at least 1 and `seed` in [0, 2**63), got {list(entries)}, "
                f"{parts} and {seed}."
            )
        self.entries, self.catalogue, self.parts, self.seed = tuple(entries), catalogue, parts, seed
        self._choices = torch.tensor([catalogue.index(entry) for entry in entries])
        self._waves = 0

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the entries held now, int64 [N]; where masked, the first allowed one."""
        progress = progress_of(observations, self.catalogue) + _TOLERANCE
        parts = (progress * self.parts).floor().clamp(0, self.parts - 1).long()
        keys = [rng.derive(self.seed, _HELD, self._waves, row, part) for row, part in enumerate(parts.tolist())]
        drawn = rng.integers(torch.tensor(keys), _HELD, (1,), len(self.entries))[:, 0]
        return first_allowed(self._choices[drawn].to(observations.device), mask)

    def observe(self, feedback: Feedback) -> None:
        """Count the waves; nothing is learned."""
        self._waves += int(feedback.done)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent as JSON."""
        fields = {
            "entries": list(self.entries),
            "parts": self.parts,
            "seed": self.seed,
            "waves": self._waves,
            "catalogue": self.catalogue.to_json(),
        }
        write(path, "random-hold", fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RandomHold:
        """Read what `save` wrote; the next wave is the one that would have followed.

        Raises:
            PolicyError: the file is missing, damaged or of another agent.
        """
        document = read(path, "random-hold", {"entries", "parts", "seed", "waves", "catalogue"})
        catalogue = Catalogue.from_json(document["catalogue"])
        agent = cls(document["entries"], catalogue, parts=document["parts"], seed=document["seed"])
        agent._waves = document["waves"]
        return agent


def plain_entries(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the names of the entries that are no mixtures: what a random choice between methods draws from."""
    pairs = zip(catalogue.names, catalogue.decisions, strict=True)
    return tuple(name for name, decision in pairs if decision.method != "uniform")


def progress_of(observations: Tensor, catalogue: Catalogue) -> Tensor:
    """Return each row's progress t/T in [0, 1], float64 [N] on the host.

    Args:
        observations: float32 [N, D], the entries of the environment in its order.
        catalogue: of the environment.
    """
    column = names(catalogue).index(_PROGRESS)
    return (observations[:, column].detach().cpu().double() + 1.0) / 2.0
