"""What goes over the wire, as strict models: unknown fields, other types and numbers out of range are refused."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, final

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

# pydantic reads no others before Python 3.12.
from typing_extensions import TypedDict

from rlmix.service.decide import Choice
from rlmix.service.records import Alias, DecisionRecord, Ended, Feedback, Origin, PolicyVersion, Run, RunState

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
DIGEST = r"^[0-9a-f]{64}$"
LARGEST = 1e6
"""Of the numbers in an observation, by absolute value."""
SEQ_END = 2**53
"""Above the numbers of decisions: what every reader of JSON keeps exact."""
BATCH = 512
"""The most items of one request."""


def _whole(value: object) -> object:
    """Return 3 for 3.0, which JSON does not tell apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Name = Annotated[str, StringConstraints(pattern=NAME)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]
Whole = Annotated[int, Field(ge=0, lt=SEQ_END), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, lt=SEQ_END), BeforeValidator(_whole)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


# What pydantic enforces of the names in an object, and does not say.
_NO_OTHERS: JsonDict = {"additionalProperties": False}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@final
class VersionRequest(_Strict):
    """A version of a policy: SHA-256 of two blobs that were uploaded before."""

    document: Digest = Field(description="SHA-256 of policy.json")
    tensors: Digest = Field(description="SHA-256 of policy.safetensors")


@final
class AliasRequest(_Strict):
    """Where an alias is to lead, and how often it was set before: 0 for a new one."""

    version: Count
    revision: Whole


@final
class RunRequest(_Strict):
    """A training that begins. Runs with equal `labels` and counts can be compared with each other."""

    policy: Name
    alias: Name
    document: Digest | None = Field(
        default=None,
        description="SHA-256 of the policy.json that the client has; null for the version that the alias leads to now",
    )
    total_steps: Count
    num_classes: Count
    num_examples: Count | None = None
    labels: dict[Name, Text] = Field(
        default_factory=dict, max_length=32, description="data, model, optimiser ...", json_schema_extra=_NO_OTHERS
    )

    @property
    def spec(self) -> dict[str, str | int | None]:
        """What is stored of it."""
        counts = {name: getattr(self, name) for name in ("total_steps", "num_classes", "num_examples")}
        return counts | {f"label/{name}": value for name, value in self.labels.items()}


@final
class Taken(_Strict):
    """A decision that the client took itself, because the service was away."""

    origin: Literal["held", "snapshot"]
    entry: Whole
    decision: dict[str, Any] = Field(description="the Decision as JSON")


class Question(_Strict):
    """What a policy is asked."""

    observation: list[Annotated[float, Field(ge=-LARGEST, le=LARGEST)]] = Field(max_length=4096)
    allowed: list[Whole] | None = Field(default=None, min_length=1, max_length=4096, description="entries, ascending")
    explore: Annotated[str, StringConstraints(pattern=r"^0x[0-7]?[0-9a-f]{1,15}$")] | None = Field(
        default=None, description="a key below 2**63 to draw with; null for the most probable entry"
    )


class DecisionRequest(Question):
    """A question to the policy, or, with `taken`, the report of a decision that the client took."""

    step: Whole
    attempt: Count = Field(default=1, description="of the run: 1, and one more for each claim")
    policy: Digest = Field(description="SHA-256 of the policy.json that the client has")
    taken: Taken | None = None


@final
class DecisionItem(DecisionRequest):
    """One of several."""

    seq: Whole


@final
class DecisionBatch(_Strict):
    """Several questions or reports of one run, each of which succeeds or fails by itself."""

    items: list[DecisionItem] = Field(min_length=1, max_length=BATCH)


@final
class EndRequest(_Strict):
    """How a run ended."""

    state: Literal["finished", "failed", "cancelled"]
    attempt: Count = 1


class FeedbackRequest(_Strict):
    """What came of a decision."""

    attempt: Count = Field(default=1, description="of the run, that took the decision")
    values: dict[Name, Annotated[float, Field(ge=-1e12, le=1e12)]] = Field(
        min_length=1, max_length=64, json_schema_extra=_NO_OTHERS
    )


@final
class FeedbackItem(FeedbackRequest):
    """One of several."""

    seq: Whole


@final
class FeedbackBatch(_Strict):
    """What came of several decisions of one run, each of which succeeds or fails by itself."""

    items: list[FeedbackItem] = Field(min_length=1, max_length=BATCH)


class InfoReply(TypedDict):
    """What answers, and how much it takes."""

    rlmix: str
    api: int
    limits: dict[str, float]


class ProjectReply(TypedDict):
    """A project."""

    project: str


class ProjectsReply(TypedDict):
    """Names of projects."""

    projects: list[str]


class BlobReply(TypedDict):
    """Bytes that are kept."""

    digest: str
    size: int


class VersionReply(TypedDict):
    """A version of a policy."""

    policy: str
    version: int
    document: str
    tensors: str
    created: str


class VersionsReply(TypedDict):
    """A page of versions."""

    versions: list[VersionReply]


class PoliciesReply(TypedDict):
    """Names of policies."""

    policies: list[str]


class AliasReply(TypedDict):
    """Where an alias leads."""

    alias: str
    revision: int
    version: VersionReply


class AliasesReply(TypedDict):
    """All aliases of a policy."""

    aliases: list[AliasReply]


class RunReply(TypedDict):
    """A run."""

    run: str
    state: RunState
    attempt: int
    next_seq: int
    spec: dict[str, str | int | None]
    alias: str
    policy: VersionReply
    created: str
    renewed: str
    ended: str | None


class RunsReply(TypedDict):
    """A page of runs."""

    runs: list[RunReply]


class PinReply(TypedDict):
    """Which policy decided."""

    name: str
    version: int
    document: str


class ChoiceReply(TypedDict):
    """What a policy answers."""

    entry: int
    decision: dict[str, Any]
    probability: float | None
    log_probability: float | None
    value: float | None


class DecisionReply(ChoiceReply):
    """A decision that is stored."""

    seq: int
    attempt: int
    step: int
    origin: Origin
    explore: str | None
    policy: PinReply
    issued: str


class TransitionReply(DecisionReply):
    """A decision with what it was taken on."""

    observation: list[float]
    allowed: list[int] | None


class DecisionsReply(TypedDict):
    """A page of decisions."""

    decisions: list[DecisionReply]


class FeedbackReply(TypedDict):
    """What came of a decision."""

    seq: int
    values: dict[str, float]
    received: str


class FeedbacksReply(TypedDict):
    """A page of feedback."""

    feedback: list[FeedbackReply]


class Failure(TypedDict):
    """What is said of an item that failed: as if it had been sent alone."""

    seq: int
    status: int
    problem: dict[str, Any]


class DecisionOutcome(TypedDict):
    """What came of an item: as if it had been sent alone."""

    seq: int
    status: int
    decision: DecisionReply


class DecisionOutcomes(TypedDict):
    """What came of each item, in their order."""

    results: list[DecisionOutcome | Failure]


class FeedbackOutcome(TypedDict):
    """What came of an item: as if it had been sent alone."""

    seq: int
    status: int
    feedback: FeedbackReply


class FeedbackOutcomes(TypedDict):
    """What came of each item, in their order."""

    results: list[FeedbackOutcome | Failure]


class EndedReply(TypedDict):
    """A run that has ended, whole."""

    cursor: int
    run: RunReply
    decisions: list[TransitionReply]
    feedback: list[FeedbackReply]


class EndedPage(TypedDict):
    """Runs in the order in which they ended. To go on: `after` = the last cursor."""

    ended: list[EndedReply]


def of_version(version: PolicyVersion) -> VersionReply:
    """Return a version as JSON."""
    return {
        "policy": version.policy,
        "version": version.number,
        "document": version.document,
        "tensors": version.tensors,
        "created": moment(version.created),
    }


def of_alias(alias: Alias) -> AliasReply:
    """Return an alias as JSON."""
    return {"alias": alias.name, "revision": alias.revision, "version": of_version(alias.version)}


def of_run(run: Run) -> RunReply:
    """Return a run as JSON."""
    return {
        "run": run.name,
        "state": run.state,
        "attempt": run.attempt,
        "next_seq": run.next_seq,
        "spec": dict(run.spec),
        "alias": run.alias,
        "policy": of_version(run.version),
        "created": moment(run.created),
        "renewed": moment(run.renewed),
        "ended": None if run.ended is None else moment(run.ended),
    }


def of_decision(record: DecisionRecord, version: PolicyVersion) -> DecisionReply:
    """Return a decision as JSON: of the same record always the same."""
    probability = record.probability
    return {
        "seq": record.seq,
        "attempt": record.attempt,
        "step": record.step,
        "origin": record.origin,
        "entry": record.entry,
        "decision": json.loads(record.decision),
        "probability": probability,
        "log_probability": _log(probability),
        "value": record.value,
        "explore": None if record.explore is None else hex(record.explore),
        "policy": {"name": version.policy, "version": version.number, "document": version.document},
        "issued": moment(record.issued),
    }


def of_feedback(feedback: Feedback) -> FeedbackReply:
    """Return feedback as JSON: of the same values always the same."""
    values = dict(sorted(feedback.values.items()))
    return {"seq": feedback.seq, "values": values, "received": moment(feedback.received)}


def of_choice(choice: Choice) -> ChoiceReply:
    """Return an answer that nobody keeps as JSON."""
    return {
        "entry": choice.entry,
        "decision": choice.decision.to_json(),
        "probability": choice.probability,
        "log_probability": _log(choice.probability),
        "value": choice.value,
    }


def of_ended(ended: Ended) -> EndedReply:
    """Return a run that has ended as JSON."""
    return {
        "cursor": ended.cursor,
        "run": of_run(ended.run),
        "decisions": [_of_transition(record, ended.run.version) for record in ended.decisions],
        "feedback": [of_feedback(one) for one in ended.feedback],
    }


def _of_transition(record: DecisionRecord, version: PolicyVersion) -> TransitionReply:
    observation: list[float] = np.frombuffer(record.observation, dtype="<f4").tolist()
    allowed = None if record.allowed is None else list(record.allowed)
    return {**of_decision(record, version), "observation": observation, "allowed": allowed}


def _log(probability: float | None) -> float | None:
    return math.log(probability) if probability else None


def moment(microseconds: int) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    text = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:06d}Z"
