"""A storage in any database that SQLAlchemy speaks to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from rlmix._files import sha256_of
from rlmix.errors import ConflictError, MissingError
from rlmix.service.records import Alias, DecisionRecord, Feedback, PolicyVersion, Run, Spec
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import AbstractEngine
from rlmix.service.storage.tables import (
    blobs,
    decisions,
    feedback,
    policies,
    policy_aliases,
    policy_versions,
    projects,
    runs,
)


@final
class SqlStorage(AbstractStorage):
    """Tables behind an engine.

    Args:
        engine: how statements reach the database; closed with the storage.
    """

    def __init__(self, engine: AbstractEngine) -> None:
        self._engine = engine

    def create_project(self, project: str) -> bool:
        """Make a project; say whether it is new."""

        def write(connection: Connection) -> bool:
            if connection.scalar(select(projects.c.id).where(projects.c.name == project)) is not None:
                return False
            connection.execute(insert(projects).values(name=project, created=now()))
            return True

        return self._engine.write(write)

    def projects(self) -> tuple[str, ...]:
        """Return the names of all projects, sorted."""
        found = select(projects.c.name).order_by(projects.c.name)
        return self._engine.read(lambda connection: tuple(connection.scalars(found)))

    def put_blob(self, data: bytes) -> tuple[str, bool]:
        """Keep bytes under their SHA-256; return it, and whether they are new."""
        digest = sha256_of(data)

        def write(connection: Connection) -> bool:
            if connection.scalar(select(blobs.c.digest).where(blobs.c.digest == digest)) is not None:
                return False
            connection.execute(insert(blobs).values(digest=digest, data=data, created=now()))
            return True

        return digest, self._engine.write(write)

    def blob(self, digest: str) -> bytes:
        """Return the bytes that have this SHA-256."""
        found = select(blobs.c.data).where(blobs.c.digest == digest)
        data: bytes | None = self._engine.read(lambda connection: connection.scalar(found))
        if data is None:
            raise MissingError(f"there is no blob `{digest}`. Upload it first.")
        return data

    def add_version(self, project: str, policy: str, document: str, tensors: str) -> tuple[PolicyVersion, bool]:
        """Add a version of a policy, which is made if need be; the same document gives the same version."""

        def write(connection: Connection) -> tuple[PolicyVersion, bool]:
            for digest in (document, tensors):
                if connection.scalar(select(blobs.c.digest).where(blobs.c.digest == digest)) is None:
                    raise MissingError(f"there is no blob `{digest}`. Upload it first.")
            owner = _policy_made(connection, project, policy)
            of_policy = policy_versions.c.policy_id == owner
            same = select(policy_versions.c.number).where(of_policy, policy_versions.c.document == document)
            number = connection.scalar(same)
            new = number is None
            if number is None:
                number = 1 + (connection.scalar(select(func.max(policy_versions.c.number)).where(of_policy)) or 0)
                row = {"number": number, "document": document, "tensors": tensors, "created": now()}
                connection.execute(insert(policy_versions).values(policy_id=owner, **row))
            return _version(connection, project, policy, number), new

        return self._engine.write(write)

    def version(self, project: str, policy: str, number: int) -> PolicyVersion:
        """Return a version."""
        return self._engine.read(lambda connection: _version(connection, project, policy, number))

    def versions(self, project: str, policy: str, after: int, limit: int) -> Sequence[PolicyVersion]:
        """Return up to `limit` versions with numbers above `after`, ascending."""

        def read(connection: Connection) -> list[PolicyVersion]:
            owner = _policy(connection, project, policy)
            page = select(policy_versions).where(policy_versions.c.policy_id == owner, policy_versions.c.number > after)
            rows = connection.execute(page.order_by(policy_versions.c.number).limit(limit))
            return [_version_of(row._mapping, project, policy) for row in rows]

        return self._engine.read(read)

    def set_alias(self, project: str, policy: str, alias: str, number: int, revision: int) -> Alias:
        """Let an alias lead to a version, if it was set `revision` times before (0: never)."""

        def write(connection: Connection) -> Alias:
            owner = _policy(connection, project, policy)
            _version(connection, project, policy, number)
            led_to = select(policy_versions.c.id).where(
                policy_versions.c.policy_id == owner, policy_versions.c.number == number
            )
            place = (policy_aliases.c.policy_id == owner) & (policy_aliases.c.name == alias)
            found = connection.scalar(select(policy_aliases.c.revision).where(place)) or 0
            if found != revision:
                raise ConflictError(f"the alias `{alias}` was set {found} times, expected {revision}. Read it again.")
            values = {"version_id": connection.scalar(led_to), "revision": revision + 1, "updated": now()}
            if revision == 0:
                connection.execute(insert(policy_aliases).values(policy_id=owner, name=alias, **values))
            else:
                connection.execute(update(policy_aliases).where(place).values(**values))
            return _alias(connection, project, policy, alias)

        return self._engine.write(write)

    def alias(self, project: str, policy: str, alias: str) -> Alias:
        """Return where an alias leads."""
        return self._engine.read(lambda connection: _alias(connection, project, policy, alias))

    def create_run(self, project: str, run: str, policy: str, alias: str, spec: Spec) -> tuple[Run, bool]:
        """Begin a run, pinned to the version that the alias leads to now."""

        def write(connection: Connection) -> tuple[Run, bool]:
            owner = _project(connection, project)
            stored = connection.execute(_run_row(owner, run)).first()
            if stored is not None:
                found = _run_of(stored, project)
                if (found.version.policy, found.alias, found.spec) != (policy, alias, spec):
                    raise ConflictError(f"there is a run `{run}` with another policy, alias or spec. Give a new name.")
                return found, False
            led_to = _alias(connection, project, policy, alias).version.number
            version_id = connection.scalar(
                select(policy_versions.c.id)
                .join(policies, policies.c.id == policy_versions.c.policy_id)
                .where(policies.c.project_id == owner, policies.c.name == policy, policy_versions.c.number == led_to)
            )
            row = {"name": run, "alias": alias, "spec": _text(spec), "state": "active", "created": now()}
            connection.execute(insert(runs).values(project_id=owner, version_id=version_id, **row))
            return _run(connection, project, run)[1], True

        return self._engine.write(write)

    def run(self, project: str, run: str) -> Run:
        """Return a run."""
        return self._engine.read(lambda connection: _run(connection, project, run)[1])

    def runs(self, project: str, after: str, limit: int) -> Sequence[Run]:
        """Return up to `limit` runs whose names come after `after`, by name."""

        def read(connection: Connection) -> list[Run]:
            page = _run_rows(_project(connection, project)).where(runs.c.name > after)
            return [_run_of(row, project) for row in connection.execute(page.order_by(runs.c.name).limit(limit))]

        return self._engine.read(read)

    def finish_run(self, project: str, run: str) -> Run:
        """End a run, if it goes on."""

        def write(connection: Connection) -> Run:
            number, found = _run(connection, project, run)
            if found.state == "finished":
                return found
            connection.execute(update(runs).where(runs.c.id == number).values(state="finished", ended=now()))
            return _run(connection, project, run)[1]

        return self._engine.write(write)

    def put_decision(self, project: str, run: str, record: DecisionRecord) -> tuple[DecisionRecord, bool]:
        """Store a decision; return the one that is stored from now on, and whether it is this one."""

        def write(connection: Connection) -> tuple[DecisionRecord, bool]:
            number, state = _run_key(connection, project, run)
            row = connection.execute(_decision_row(number, record.seq)).first()
            if row is not None:
                stored = _decision_of(row)
                if stored.asked != record.asked:
                    raise ConflictError(f"decision {record.seq} was asked for with something else. Do two use the run?")
                if record.origin != "server" and stored.answered != record.answered:
                    raise ConflictError(f"decision {record.seq} is stored with another answer.")
                return stored, False
            if record.origin == "server" and state != "active":
                raise ConflictError(f"the run `{run}` is {state}. Begin a new one.")
            connection.execute(insert(decisions).values(run_id=number, **_decision_values(record)))
            return record, True

        return self._engine.write(write)

    def decision(self, project: str, run: str, seq: int) -> DecisionRecord:
        """Return a decision."""

        def read(connection: Connection) -> DecisionRecord:
            row = connection.execute(_decision_row(_run_key(connection, project, run)[0], seq)).first()
            if row is None:
                raise MissingError(f"the run `{run}` has no decision {seq}.")
            return _decision_of(row)

        return self._engine.read(read)

    def decisions(self, project: str, run: str, after: int, limit: int) -> Sequence[DecisionRecord]:
        """Return up to `limit` decisions with numbers above `after`, ascending."""

        def read(connection: Connection) -> list[DecisionRecord]:
            number, _ = _run_key(connection, project, run)
            page = select(decisions).where(decisions.c.run_id == number, decisions.c.seq > after)
            return [_decision_of(row) for row in connection.execute(page.order_by(decisions.c.seq).limit(limit))]

        return self._engine.read(read)

    def put_feedback(self, project: str, run: str, feedback: Feedback) -> tuple[Feedback, bool]:
        """Store what came of a decision that is stored."""

        def write(connection: Connection) -> tuple[Feedback, bool]:
            number, _ = _run_key(connection, project, run)
            stored = _feedback(connection, number, feedback.seq)
            if stored is not None:
                if stored.values != feedback.values:
                    raise ConflictError(f"decision {feedback.seq} has other feedback already.")
                return stored, False
            if connection.execute(_decision_row(number, feedback.seq)).first() is None:
                raise MissingError(f"the run `{run}` has no decision {feedback.seq}. Store that first.")
            _insert_feedback(connection, number, feedback)
            return feedback, True

        return self._engine.write(write)

    def feedback(self, project: str, run: str, seq: int) -> Feedback:
        """Return what came of a decision."""

        def read(connection: Connection) -> Feedback:
            found = _feedback(connection, _run_key(connection, project, run)[0], seq)
            if found is None:
                raise MissingError(f"the run `{run}` has no feedback {seq}.")
            return found

        return self._engine.read(read)

    def check(self) -> None:
        """Prove that something can be written."""
        # A change of nothing takes the same locks as one of something.
        self._engine.write(
            lambda connection: connection.execute(update(projects).where(projects.c.id < 0).values(id=0))
        )

    def close(self) -> None:
        """Finish what was begun, and let go of the database."""
        self._engine.close()


def now() -> int:
    """Return the time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _project(connection: Connection, project: str) -> int:
    number: int | None = connection.scalar(select(projects.c.id).where(projects.c.name == project))
    if number is None:
        raise MissingError(f"there is no project `{project}`. Make it first: PUT /v1/projects/{project}")
    return number


def _policy(connection: Connection, project: str, policy: str) -> int:
    number = _known_policy(connection, _project(connection, project), policy)
    if number is None:
        raise MissingError(f"the project `{project}` has no policy `{policy}`. Add a version of it first.")
    return number


def _known_policy(connection: Connection, owner: int, policy: str) -> int | None:
    """Return the number of a project's policy, if it has it."""
    found = select(policies.c.id).where(policies.c.project_id == owner, policies.c.name == policy)
    number: int | None = connection.scalar(found)
    return number


def _policy_made(connection: Connection, project: str, policy: str) -> int:
    owner = _project(connection, project)
    if _known_policy(connection, owner, policy) is None:
        connection.execute(insert(policies).values(project_id=owner, name=policy))
    return _policy(connection, project, policy)


def _version(connection: Connection, project: str, policy: str, number: int) -> PolicyVersion:
    owner = _policy(connection, project, policy)
    found = select(policy_versions).where(policy_versions.c.policy_id == owner, policy_versions.c.number == number)
    row = connection.execute(found).first()
    if row is None:
        raise MissingError(f"the policy `{policy}` has no version {number}.")
    return _version_of(row._mapping, project, policy)


def _version_of(row: Mapping[Any, Any], project: str, policy: str) -> PolicyVersion:
    names = ("number", "document", "tensors", "created")
    return PolicyVersion(project=project, policy=policy, **{name: row[policy_versions.c[name]] for name in names})


def _alias(connection: Connection, project: str, policy: str, alias: str) -> Alias:
    owner = _policy(connection, project, policy)
    row = connection.execute(
        select(policy_aliases.c.revision, policy_versions.c.number)
        .join(policy_versions, policy_versions.c.id == policy_aliases.c.version_id)
        .where(policy_aliases.c.policy_id == owner, policy_aliases.c.name == alias)
    ).first()
    if row is None:
        raise MissingError(f"the policy `{policy}` has no alias `{alias}`. Set it to a version first.")
    return Alias(name=alias, version=_version(connection, project, policy, row.number), revision=row.revision)


def _run_rows(owner: int) -> Select[Any]:
    """Return the runs of a project, each with its version and the name of its policy."""
    return (
        select(runs, policy_versions, policies.c.name)
        .join(policy_versions, policy_versions.c.id == runs.c.version_id)
        .join(policies, policies.c.id == policy_versions.c.policy_id)
        .where(runs.c.project_id == owner)
    )


def _run_row(owner: int, run: str) -> Select[Any]:
    return _run_rows(owner).where(runs.c.name == run)


def _run(connection: Connection, project: str, run: str) -> tuple[int, Run]:
    """Return a run's key and the run."""
    row = connection.execute(_run_row(_project(connection, project), run)).first()
    if row is None:
        raise MissingError(f"the project `{project}` has no run `{run}`. Begin it first.")
    return row._mapping[runs.c.id], _run_of(row, project)


def _run_of(row: Row[Any], project: str) -> Run:
    fields = row._mapping
    return Run(
        name=fields[runs.c.name],
        spec=json.loads(fields[runs.c.spec]),
        alias=fields[runs.c.alias],
        version=_version_of(fields, project, fields[policies.c.name]),
        state=fields[runs.c.state],
        created=fields[runs.c.created],
        ended=fields[runs.c.ended],
    )


def _run_key(connection: Connection, project: str, run: str) -> tuple[int, str]:
    """Return a run's key and state: all that a decision needs."""
    row = connection.execute(
        select(runs.c.id, runs.c.state)
        .join(projects, projects.c.id == runs.c.project_id)
        .where(projects.c.name == project, runs.c.name == run)
    ).first()
    if row is None:
        raise MissingError(f"the project `{project}` has no run `{run}`. Begin it first.")
    return row.id, row.state


def _decision_row(run_id: int, seq: int) -> Select[Any]:
    return select(decisions).where(decisions.c.run_id == run_id, decisions.c.seq == seq)


_PLAIN = ("seq", "step", "observation", "explore", "origin", "entry", "decision", "probability", "value", "issued")


def _decision_values(record: DecisionRecord) -> dict[str, Any]:
    allowed = None if record.allowed is None else _text(record.allowed)
    return {"allowed": allowed, **{name: getattr(record, name) for name in _PLAIN}}


def _decision_of(row: Row[Any]) -> DecisionRecord:
    fields = row._mapping
    allowed = None if fields["allowed"] is None else tuple(json.loads(fields["allowed"]))
    return DecisionRecord(allowed=allowed, **{name: fields[name] for name in _PLAIN})


def _feedback(connection: Connection, run_id: int, seq: int) -> Feedback | None:
    found = select(feedback).where(feedback.c.run_id == run_id, feedback.c.seq == seq)
    row = connection.execute(found).first()
    return None if row is None else Feedback(seq=seq, values=json.loads(row.data), received=row.received)


def _insert_feedback(connection: Connection, run_id: int, given: Feedback) -> None:
    values = {"seq": given.seq, "data": _text(dict(given.values)), "received": given.received}
    connection.execute(insert(feedback).values(run_id=run_id, **values))
