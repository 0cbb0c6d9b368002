"""What the service keeps, as plain values: the words that storage, HTTP and the learner share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

Origin: TypeAlias = Literal["server", "held", "snapshot"]
"""Who took a decision: the service; the client, keeping to the one before; the client, with its copy of the policy."""

RunState: TypeAlias = Literal["active", "finished", "failed", "cancelled"]

Phase: TypeAlias = Literal["active", "stale", "lost", "finished", "failed", "cancelled"]

Scope: TypeAlias = Literal["read", "decide", "publish", "admin"]
"""What a token opens: to look; to train, that is to begin runs, ask and report; to add policies; everything."""

LEASE_SECONDS = 15 * 60
"""An active run that has not been heard of for so long is stale."""
LOST_SECONDS = 24 * 60 * 60
"""And for so long: lost. Both come back by saying something."""

Spec: TypeAlias = Mapping[str, str | int | None]
"""What a training is: what makes runs comparable. Written as JSON, so equal ones are equal texts."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """A version of a policy; it never changes.

    Attributes:
        project: name.
        policy: name.
        number: counted from 1 within the policy.
        document: SHA-256 of the blob `policy.json`, which names the checksum of the tensors: it stands for the whole.
        tensors: SHA-256 of the blob `policy.safetensors`.
        created: microseconds since 1970, UTC.
    """

    project: str
    policy: str
    number: int
    document: str
    tensors: str
    created: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name that leads to a version, and can be moved.

    Attributes:
        name: of the alias.
        version: where it leads.
        revision: how often it was set: what a compare-and-set compares.
    """

    name: str
    version: PolicyVersion
    revision: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training.

    Attributes:
        name: chosen by the client, unique in the project.
        spec: what it is.
        alias: the alias that it asked for.
        version: the version that the alias led to when the run began; it stays.
        state: whether it goes on.
        attempt: how often it was begun: 1, and one more for each claim. Only the newest may write.
        next_seq: one above the highest number of its decisions.
        created: microseconds since 1970, UTC.
        renewed: the same, when it was last heard of, give or take ten seconds.
        ended: the same, or None.
    """

    name: str
    spec: Spec
    alias: str
    version: PolicyVersion
    state: RunState
    attempt: int
    next_seq: int
    created: int
    renewed: int
    ended: int | None

    def phase(self, now: int, since: int = 0) -> Phase:
        """Return the state, told apart by how long an active run has been silent.

        Args:
            now: microseconds since 1970, UTC.
            since: when the service began to listen: before, nobody could be heard, which is no run's fault.
        """
        if self.state != "active":
            return self.state
        silent = (now - max(self.renewed, since)) / 1e6
        return "lost" if silent >= LOST_SECONDS else "stale" if silent >= LEASE_SECONDS else "active"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision: what was asked, and the answer. It is stored once, whole, and never changes.

    Attributes:
        seq: number of the decision in its run, from 0.
        attempt: of the run, that asked.
        step: of the training, from which on it holds.
        observation: what the policy read, float32 little endian, in its order.
        allowed: the entries that could be chosen, ascending; None for all.
        explore: the key that it was drawn with, in [0, 2**63); None for the most probable entry.
        origin: who took it.
        entry: position in the policy's catalogue.
        decision: the Decision as JSON text.
        probability: of the entry, under the policy's version; None if the policy did not weigh it (a held decision).
        value: what the critic expected; None without a critic.
        issued: microseconds since 1970, UTC.
    """

    seq: int
    attempt: int
    step: int
    observation: bytes
    allowed: tuple[int, ...] | None
    explore: int | None
    origin: Origin
    entry: int
    decision: str
    probability: float | None
    value: float | None
    issued: int

    @property
    def asked(self) -> tuple[object, ...]:
        """What was asked: a second request with another question is a mistake of the client."""
        return self.seq, self.step, self.observation, self.allowed, self.explore

    @property
    def answered(self) -> tuple[object, ...]:
        """What was answered."""
        return self.entry, self.decision


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What came of a decision; stored once, and never changes.

    Attributes:
        seq: number of the decision.
        values: by name, finite.
        received: microseconds since 1970, UTC.
    """

    seq: int
    values: Mapping[str, float]
    received: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has ended, whole: what a learner reads.

    Attributes:
        cursor: above that of every run that ended before.
        run: the run.
        decisions: in the order of their numbers.
        feedback: what came of them, in the same order.
    """

    cursor: int
    run: Run
    decisions: tuple[DecisionRecord, ...]
    feedback: tuple[Feedback, ...]

    @property
    def lasting(self) -> tuple[DecisionRecord, ...]:
        """The decisions that the classifier came from.

        A training that was taken up again from an older checkpoint decided twice about the same steps; the later time
        counts.
        """
        kept: list[DecisionRecord] = []
        first = float("inf")
        for record in reversed(self.decisions):
            if record.step < first:
                kept.append(record)
                first = record.step
        return tuple(reversed(kept))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """Where learning from the runs of a policy has come to.

    Attributes:
        cursor: of the last run that was read.
        checkpoint: digest of the blob to go on from; None before the first.
    """

    cursor: int = 0
    checkpoint: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A key to the service. What it is itself is known to its owner alone.

    Attributes:
        name: chosen by whoever made it.
        project: the only one that it opens; None for all.
        scopes: what it opens there.
        created: microseconds since 1970, UTC.
        expires: the same, or None for never.
        revoked: the same, or None.
    """

    name: str
    project: str | None
    scopes: tuple[Scope, ...]
    created: int
    expires: int | None
    revoked: int | None
