"""From a question of a client to what is stored and answered.

What is of a wrong form is refused with 422; what is well-formed and does not fit the policy, with 409.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from rlmix.errors import RlmixError
from rlmix.policy.decision import Decision
from rlmix.policy.sources import Learned
from rlmix.service import schemas
from rlmix.service.decide import Choice, decide
from rlmix.service.policies import Policies
from rlmix.service.records import DecisionRecord, Origin, PolicyVersion
from rlmix.service.replies import ProblemError
from rlmix.service.storage.sql import now

_JSON = json.JSONEncoder(sort_keys=True)


def record_of(policies: Policies, version: PolicyVersion, seq: int, body: schemas.DecisionRequest) -> DecisionRecord:
    """Return what is to be stored for a request: the policy's answer, or what the client did.

    Args:
        policies: has the run's.
        version: that the run is pinned to.
        seq: number of the decision.
        body: the request.

    Raises:
        ProblemError: the request is of another policy, or does not fit it.
    """
    if body.policy != version.document:
        raise ProblemError(409, "other-policy", f"the run is pinned to the policy {version.document}.")
    policy = policies.get(version.document, version.tensors)
    observation, choice = _answered(policy, body)
    origin: Origin = "server"
    entry, decision, weighed = choice.entry, choice.decision, True
    allowed = None if body.allowed is None else tuple(body.allowed)
    if body.taken is not None:
        origin, entry, decision = body.taken.origin, body.taken.entry, _carried_out(policy, body.taken, allowed)
        # A held decision is no answer to this question, so the policy gave it no probability.
        weighed = origin == "snapshot" and (entry, decision) == (choice.entry, choice.decision)
    return DecisionRecord(
        seq=seq,
        attempt=body.attempt,
        step=body.step,
        observation=observation.tobytes(),
        allowed=allowed,
        explore=_key(body),
        origin=origin,
        entry=entry,
        decision=_JSON.encode(decision.to_json()),
        probability=choice.probability if weighed else None,
        value=choice.value if weighed else None,
        issued=now(),
    )


def answer_of(policy: Learned, body: schemas.Question) -> Choice:
    """Return a policy's answer to a question that nobody keeps.

    Raises:
        ProblemError: the question does not fit the policy.
    """
    return _answered(policy, body)[1]


def _answered(policy: Learned, body: schemas.Question) -> tuple[np.ndarray[Any, np.dtype[np.float32]], Choice]:
    """Return the observation and what the policy answers, once it is known that the question fits."""
    expected = len(policy.policy.observation_names)
    if len(body.observation) != expected:
        raise ProblemError(409, "observation", f"the policy reads {expected} numbers, got {len(body.observation)}.")
    allowed = body.allowed
    if allowed is not None and (allowed != sorted(set(allowed)) or allowed[-1] >= len(policy.names)):
        raise ProblemError(409, "allowed", f"`allowed` must be ascending and below {len(policy.names)}.")
    observation = np.asarray(body.observation, dtype="<f4")
    mask = None if allowed is None else tuple(allowed)
    return observation, decide(policy, torch.from_numpy(observation), mask, _key(body))


def _key(body: schemas.Question) -> int | None:
    return None if body.explore is None else int(body.explore, 16)


def _carried_out(policy: Learned, taken: schemas.Taken, allowed: tuple[int, ...] | None) -> Decision:
    """Return the decision that a client took, checked against the policy."""
    if taken.entry >= len(policy.names) or (allowed is not None and taken.entry not in allowed):
        raise ProblemError(409, "taken", f"entry {taken.entry} cannot be chosen here.")
    try:
        decision = Decision.from_json(taken.decision)
        decision.build()
    except RlmixError as error:
        raise ProblemError(422, "taken", str(error)) from error
    return decision
