"""What finished trainings teach: their scores, which of their decisions count, and the rewards that follow."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch

from rlmix.agents.ppo_update import Batch
from rlmix.envs.reward import CALIBRATION, LIMIT, SCALE
from rlmix.policy.artifact import LearnedPolicy
from rlmix.service.records import DecisionRecord, Ended

ACCURACY, TS_NLL = "val_accuracy", "val_tsnll"
"""Names under which a client reports, at the end, how good its classifier is on images that it was not trained on."""

OTHERS = 2
"""So many other trainings of the same kind are needed to say whether one went well."""

# Trainings of which there are too few of a kind are kept aside, but not for ever.
_ASIDE = 1000
# What the origin of a decision must be: a held one is no answer of the policy to what it saw.
_DRAWN = ("server", "snapshot")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of the runs that were read.

    Attributes:
        read: runs.
        censored: those that did not finish, or never said at the end how good the classifier was. They count neither
            as good nor as bad.
        silent: those of whose decisions none can be learned about: taken without `explore`, or by another policy.
        learned: those that an update has learned from.
        dropped: those that were kept aside for too long.
        decisions: those that updates have learned about.
    """

    read: int = 0
    censored: int = 0
    silent: int = 0
    learned: int = 0
    dropped: int = 0
    decisions: int = 0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A training that something can be learned from.

    Attributes:
        kind: its spec; trainings of equal kinds are comparable.
        score: how good its classifier is.
        decisions: in order; their rewards are 0, for the last one too, or NaN where the next decision is missing.
    """

    kind: str
    score: float
    decisions: Batch


@final
class Experience:
    """Runs that have ended, taken up in their order: what is learned is a function of them and of nothing else.

    The reward of a training is how much better it is than the mean of the others of its kind.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._scores: dict[str, tuple[int, float]] = {}
        self._waiting: list[Episode] = []

    @property
    def ready(self) -> int:
        """How many runs wait to be learned from."""
        return sum(map(self._comparable, self._waiting))

    @property
    def aside(self) -> int:
        """How many runs wait for others of their kind."""
        return len(self._waiting) - self.ready

    def add(self, ended: Ended, taker: LearnedPolicy | None, policy: LearnedPolicy) -> None:
        """Take up a run.

        Args:
            ended: the run.
            taker: the policy that it is pinned to; None if that cannot be read any more.
            policy: the one that is to learn.
        """
        score, counts = score_of(ended), self.counts
        self.counts = replace(counts, read=counts.read + 1)
        if score is None:
            self.counts = replace(self.counts, censored=counts.censored + 1)
            return
        kind = json.dumps(dict(ended.run.spec), sort_keys=True)
        number, total = self._scores.get(kind, (0, 0.0))
        self._scores[kind] = (number + 1, total + score)
        decisions = _batch(ended, policy) if taker is not None and same_question(taker, policy) else None
        if decisions is None or not bool(decisions.known.any()):
            self.counts = replace(self.counts, silent=counts.silent + 1)
            return
        self._waiting.append(Episode(kind=kind, score=score, decisions=decisions))
        if self.aside > _ASIDE:
            self._waiting.remove(next(one for one in self._waiting if not self._comparable(one)))
            self.counts = replace(self.counts, dropped=counts.dropped + 1)

    def take(self) -> tuple[Batch, float]:
        """Return all decisions that are ready, with their rewards, and the mean reward of their trainings."""
        taken = [one for one in self._waiting if self._comparable(one)]
        self._waiting = [one for one in self._waiting if not self._comparable(one)]
        rewards = [self._reward(one) for one in taken]
        batch = _joined([_rewarded(one.decisions, reward) for one, reward in zip(taken, rewards, strict=True)])
        counts = self.counts
        known = int(batch.known.sum())
        self.counts = replace(counts, learned=counts.learned + len(taken), decisions=counts.decisions + known)
        return batch, math.fsum(rewards) / len(rewards)

    def forget(self) -> None:
        """Drop the runs that wait: they answered the questions of another policy."""
        self.counts = replace(self.counts, dropped=self.counts.dropped + len(self._waiting))
        self._waiting = []

    def to_tree(self) -> dict[str, Any]:
        """Return all of it as `rlmix._files.save_tree` takes it."""
        waiting = [{"kind": one.kind, "score": one.score, "decisions": _fields(one.decisions)} for one in self._waiting]
        scores = {kind: list(sums) for kind, sums in self._scores.items()}
        return {"counts": dataclasses.asdict(self.counts), "scores": scores, "waiting": waiting}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Experience:
        """Invert `to_tree`.

        Raises:
            KeyError, TypeError: it is no such tree.
        """
        made = cls()
        made.counts = Counts(**tree["counts"])
        made._scores = {kind: (number, total) for kind, (number, total) in tree["scores"].items()}
        made._waiting = [
            Episode(kind=one["kind"], score=one["score"], decisions=Batch(**one["decisions"]))
            for one in tree["waiting"]
        ]
        return made

    def _comparable(self, episode: Episode) -> bool:
        return self._scores[episode.kind][0] > OTHERS

    def _reward(self, episode: Episode) -> float:
        number, total = self._scores[episode.kind]
        others = (total - episode.score) / (number - 1)
        return min(max((episode.score - others) / SCALE, -LIMIT), LIMIT)


def score_of(ended: Ended) -> float | None:
    """Return how good the classifier of a run is, S = accuracy + 0.25 (1 - TS-NLL / log C); None if nobody said.

    It counts what was reported with the last decision of a run that finished: earlier reports are of a classifier that
    was trained further, and those of a run that failed are of none.
    """
    lasting, classes = ended.lasting, ended.run.spec.get("num_classes")
    if ended.run.state != "finished" or not lasting or not isinstance(classes, int) or classes < 2:
        return None
    found = [one.values for one in ended.feedback if one.seq == lasting[-1].seq]
    if not found or not {ACCURACY, TS_NLL} <= set(found[0]):
        return None
    accuracy, ts_nll = found[0][ACCURACY], found[0][TS_NLL]
    if not (0 <= accuracy <= 1 and ts_nll >= 0):
        return None
    return accuracy + CALIBRATION * (1 - ts_nll / math.log(classes))


def same_question(one: LearnedPolicy, other: LearnedPolicy) -> bool:
    """Say whether two policies see the same and choose from the same, so that one learns from the other's choices."""
    return one.codec is None and (one.observation_names, one.catalogue) == (other.observation_names, other.catalogue)


def _batch(ended: Ended, policy: LearnedPolicy) -> Batch | None:
    """Return the decisions of a run; those that were not drawn have no probability."""
    records, stored = ended.lasting, {one.seq for one in ended.decisions}
    if any(len(one.observation) != 4 * len(policy.observation_names) for one in records):
        return None
    observations = torch.from_numpy(np.stack([np.frombuffer(one.observation, dtype="<f4") for one in records]).copy())
    entries = len(policy.catalogue)
    # Decisions that a resumed training took again are stored, so they leave no gap.
    gaps = [not stored.issuperset(range(one.seq, two.seq)) for one, two in itertools.pairwise(records)]
    return Batch(
        observations=torch.clamp(observations, policy.low, policy.high),
        allowed=torch.tensor([_allowed(one, entries) for one in records]),
        entries=torch.tensor([one.entry for one in records]),
        log_probabilities=torch.tensor([_log_probability(one) for one in records]),
        rewards=torch.tensor([math.nan if gap else 0.0 for gap in (*gaps, False)]),
        ends=torch.tensor([row == len(records) - 1 for row in range(len(records))]),
    )


def _allowed(record: DecisionRecord, entries: int) -> list[bool]:
    return [record.allowed is None or entry in record.allowed for entry in range(entries)]


def _log_probability(record: DecisionRecord) -> float:
    """Return the log of the probability that a decision was drawn with; NaN if it was not drawn."""
    drawn = record.explore is not None and record.origin in _DRAWN
    return math.log(record.probability) if drawn and record.probability else math.nan


def _rewarded(decisions: Batch, reward: float) -> Batch:
    rewards = decisions.rewards.clone()
    rewards[-1] = reward
    return replace(decisions, rewards=rewards)


def _fields(batch: Batch) -> dict[str, Any]:
    return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}


def _joined(batches: Sequence[Batch]) -> Batch:
    parts = [_fields(one) for one in batches]
    return Batch(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
