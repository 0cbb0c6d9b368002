"""What the service keeps, as plain values: the words that storage, HTTP and the learner share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

Origin: TypeAlias = Literal["server", "held", "snapshot"]
"""Who took a decision: the service; the client, keeping to the one before; the client, with its copy of the policy."""

RunState: TypeAlias = Literal["active", "finished"]

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
        created: microseconds since 1970, UTC.
        ended: the same, or None.
    """

    name: str
    spec: Spec
    alias: str
    version: PolicyVersion
    state: RunState
    created: int
    ended: int | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision: what was asked, and the answer. It is stored once, whole, and never changes.

    Attributes:
        seq: number of the decision in its run, from 0.
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
