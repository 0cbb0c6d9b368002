"""What goes over the wire, as strict models: unknown fields, other types and numbers out of range are refused."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from rlmix.service.records import Alias, DecisionRecord, Feedback, PolicyVersion, Run

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
DIGEST = r"^[0-9a-f]{64}$"
LARGEST = 1e6
"""Of the numbers in an observation, by absolute value."""
SEQ_END = 2**53
"""Above the numbers of decisions: what every reader of JSON keeps exact."""

Name = Annotated[str, StringConstraints(pattern=NAME)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]
Whole = Annotated[int, Field(ge=0, lt=SEQ_END)]
Count = Annotated[int, Field(ge=1, lt=SEQ_END)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


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
    total_steps: Count
    num_classes: Count
    num_examples: Count | None = None
    labels: dict[Name, Text] = Field(default_factory=dict, max_length=32, description="data, model, optimiser ...")

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


@final
class DecisionRequest(_Strict):
    """A question to the policy, or, with `taken`, the report of a decision that the client took."""

    step: Whole
    policy: Digest = Field(description="SHA-256 of the policy.json that the client has")
    observation: list[Annotated[float, Field(ge=-LARGEST, le=LARGEST)]] = Field(max_length=4096)
    allowed: list[Whole] | None = Field(default=None, min_length=1, max_length=4096, description="entries, ascending")
    explore: Annotated[str, StringConstraints(pattern=r"^0x[0-7]?[0-9a-f]{1,15}$")] | None = Field(
        default=None, description="a key below 2**63 to draw with; null for the most probable entry"
    )
    taken: Taken | None = None


@final
class FeedbackRequest(_Strict):
    """What came of a decision."""

    values: dict[Name, Annotated[float, Field(ge=-1e12, le=1e12)]] = Field(min_length=1, max_length=64)


def of_version(version: PolicyVersion) -> dict[str, Any]:
    """Return a version as JSON."""
    return {
        "policy": version.policy,
        "version": version.number,
        "document": version.document,
        "tensors": version.tensors,
        "created": _time(version.created),
    }


def of_alias(alias: Alias) -> dict[str, Any]:
    """Return an alias as JSON."""
    return {"alias": alias.name, "revision": alias.revision, "version": of_version(alias.version)}


def of_run(run: Run) -> dict[str, Any]:
    """Return a run as JSON."""
    return {
        "run": run.name,
        "state": run.state,
        "spec": dict(run.spec),
        "alias": run.alias,
        "policy": of_version(run.version),
        "created": _time(run.created),
        "ended": None if run.ended is None else _time(run.ended),
    }


def of_decision(record: DecisionRecord, version: PolicyVersion) -> dict[str, Any]:
    """Return a decision as JSON: of the same record always the same."""
    probability = record.probability
    return {
        "seq": record.seq,
        "step": record.step,
        "origin": record.origin,
        "entry": record.entry,
        "decision": json.loads(record.decision),
        "probability": probability,
        "log_probability": math.log(probability) if probability else None,
        "value": record.value,
        "explore": None if record.explore is None else hex(record.explore),
        "policy": {"name": version.policy, "version": version.number, "document": version.document},
        "issued": _time(record.issued),
    }


def of_feedback(feedback: Feedback) -> dict[str, Any]:
    """Return feedback as JSON."""
    return {"seq": feedback.seq, "values": dict(feedback.values), "received": _time(feedback.received)}


def _time(microseconds: int) -> str:
    """Return a time as RFC 3339 has it, in UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{rest:06d}Z"
