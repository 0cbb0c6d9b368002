"""A storage in any database that SQLAlchemy speaks to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

from sqlalchemy import Connection, Insert, Row, Select, bindparam, func, insert, select, update
from sqlalchemy.dialects import sqlite

from rlmix._files import sha256_of
from rlmix.errors import ConflictError, FencedError, MissingError
from rlmix.service.failpoints import fail_point
from rlmix.service.records import (
    LEASE_SECONDS,
    LOST_SECONDS,
    Alias,
    DecisionRecord,
    Ended,
    Feedback,
    Learner,
    Origin,
    Phase,
    PolicyVersion,
    Run,
    RunState,
    Spec,
    Token,
)
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import AbstractEngine
from rlmix.service.storage.tables import (
    blobs,
    decisions,
    feedback,
    learners,
    leases,
    policies,
    policy_aliases,
    policy_versions,
    projects,
    run_log,
    runs,
    tokens,
)

# How exact `Run.renewed` is: a write for every decision would double what is written.
_RENEWED_MICROSECONDS = 10_000_000


@final
class _Prepared:
    """A statement of plain values that every decision needs.

    SQLite's driver is given it as a text that was made once: to send such a statement through all of SQLAlchemy takes
    six times as long as the database takes for it.

    Args:
        statement: its parameters have names.
    """

    def __init__(self, statement: Select[Any] | Insert) -> None:
        self._statement = statement
        compiled = statement.compile(dialect=sqlite.dialect())
        self._text, self._names = str(compiled), tuple(compiled.positiontup or ())

    def run(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """Return the first row, if there is one."""
        if connection.dialect.name == "sqlite":
            driver: Any = connection.connection.driver_connection
            found: tuple[Any, ...] | None = driver.execute(
                self._text, [values[name] for name in self._names]
            ).fetchone()
            return found
        result = connection.execute(self._statement, values)
        return result.first() if result.returns_rows else None


_TAKEN = (
    select(decisions.c.attempt)
    .where(decisions.c.run_id == runs.c.id, decisions.c.seq == bindparam("number"))
    .scalar_subquery()
)
_RUN_KEY = _Prepared(
    select(runs.c.id, runs.c.name, runs.c.state, runs.c.attempt, runs.c.renewed, _TAKEN)
    .join(projects, projects.c.id == runs.c.project_id)
    .where(projects.c.name == bindparam("project"), runs.c.name == bindparam("run"))
    .with_for_update(of=runs)
)
_DECISION = select(decisions).where(decisions.c.run_id == bindparam("run"), decisions.c.seq == bindparam("number"))
_ADD_DECISION = _Prepared(insert(decisions))
# Of the lock that puts runs that end into one order.
_LOG_LOCK = 0x726C6D6978


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
            fail_point("service.mid_blob_upload")
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
                _check_blob(connection, digest)
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
            found = connection.scalar(select(policy_aliases.c.revision).where(place).with_for_update()) or 0
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

    def create_run(
        self, project: str, run: str, policy: str, alias: str, spec: Spec, document: str | None = None
    ) -> tuple[Run, bool]:
        """Begin a run, pinned to the version of a document, or to the one that the alias leads to now."""

        def write(connection: Connection) -> tuple[Run, bool]:
            owner = _project(connection, project)
            stored = connection.execute(_run_row(owner, run)).first()
            if stored is not None:
                found = _run_of(stored, project)
                if (found.version.policy, found.alias, found.spec) != (policy, alias, spec):
                    raise ConflictError(f"there is a run `{run}` with another policy, alias or spec. Give a new name.")
                return found, False
            led_to = _alias(connection, project, policy, alias).version.document
            version_id = connection.scalar(
                select(policy_versions.c.id)
                .join(policies, policies.c.id == policy_versions.c.policy_id)
                .where(policies.c.project_id == owner, policies.c.name == policy)
                .where(policy_versions.c.document == (document or led_to))
            )
            if version_id is None:
                raise MissingError(f"the policy `{policy}` has no version `{document}`. Fetch the policy again.")
            begun = now()
            row = {"name": run, "alias": alias, "spec": _text(spec), "state": "active", "created": begun}
            values = {"project_id": owner, "version_id": version_id, "attempt": 1, "renewed": begun, **row}
            connection.execute(insert(runs).values(**values))
            return _run(connection, project, run), True

        return self._engine.write(write)

    def run(self, project: str, run: str) -> Run:
        """Return a run."""
        return self._engine.read(lambda connection: _run(connection, project, run))

    def runs(self, project: str, after: str, limit: int) -> Sequence[Run]:
        """Return up to `limit` runs whose names come after `after`, by name."""

        def read(connection: Connection) -> list[Run]:
            page = _run_rows(_project(connection, project)).where(runs.c.name > after)
            return [_run_of(row, project) for row in connection.execute(page.order_by(runs.c.name).limit(limit))]

        return self._engine.read(read)

    def newest_runs(self, project: str, limit: int) -> Sequence[Run]:
        """Return up to `limit` runs, the last that began first."""

        def read(connection: Connection) -> list[Run]:
            page = _run_rows(_project(connection, project)).order_by(runs.c.id.desc()).limit(limit)
            return [_run_of(row, project) for row in connection.execute(page)]

        return self._engine.read(read)

    def claim_run(self, project: str, run: str) -> Run:
        """Go on with a run: whoever did so before may not write any more."""

        def write(connection: Connection) -> Run:
            key = _run_key(connection, project, run)
            if key.state != "active":
                raise ConflictError(f"the run `{run}` is {key.state}. Begin a new one.")
            values = {"attempt": key.attempt + 1, "renewed": now()}
            connection.execute(update(runs).where(runs.c.id == key.id).values(**values))
            return _run(connection, project, run)

        return self._engine.write(write)

    def end_run(self, project: str, run: str, state: RunState, attempt: int) -> Run:
        """End a run, if it goes on."""

        def write(connection: Connection) -> Run:
            key = _run_key(connection, project, run)
            key.check(attempt)
            if key.state == "active":
                _in_order(connection)
                connection.execute(update(runs).where(runs.c.id == key.id).values(state=state, ended=now()))
                connection.execute(insert(run_log).values(run_id=key.id))
            elif key.state != state:
                raise ConflictError(f"the run `{run}` is {key.state} already.")
            return _run(connection, project, run)

        return self._engine.write(write)

    def put_decision(self, project: str, run: str, record: DecisionRecord) -> tuple[DecisionRecord, bool]:
        """Store a decision; return the one that is stored from now on, and whether it is this one."""

        def write(connection: Connection) -> tuple[DecisionRecord, bool]:
            key = _run_key(connection, project, run, record.seq)
            key.check(record.attempt)
            key.renew(connection)
            if key.taken is not None:
                stored = _decision_of(connection.execute(_DECISION, {"run": key.id, "number": record.seq}).one())
                if stored.asked != record.asked:
                    raise ConflictError(f"decision {record.seq} was asked for with something else. Do two use the run?")
                if record.origin != "server" and stored.answered != record.answered:
                    raise ConflictError(f"decision {record.seq} is stored with another answer.")
                return stored, False
            if record.origin == "server" and key.state != "active":
                raise ConflictError(f"the run `{run}` is {key.state}. Begin a new one.")
            _ADD_DECISION.run(connection, {"run_id": key.id, **_decision_values(record)})
            return record, True

        return self._engine.write(write)

    def decision(self, project: str, run: str, seq: int) -> DecisionRecord:
        """Return a decision."""

        def read(connection: Connection) -> DecisionRecord:
            row = connection.execute(_DECISION, {"run": _run_id(connection, project, run), "number": seq}).first()
            if row is None:
                raise MissingError(f"the run `{run}` has no decision {seq}.")
            return _decision_of(row)

        return self._engine.read(read)

    def decisions(self, project: str, run: str, after: int, limit: int) -> Sequence[DecisionRecord]:
        """Return up to `limit` decisions with numbers above `after`, ascending."""

        def read(connection: Connection) -> list[DecisionRecord]:
            return _decisions(connection, _run_id(connection, project, run), after, limit)

        return self._engine.read(read)

    def put_feedback(self, project: str, run: str, feedback: Feedback, attempt: int) -> tuple[Feedback, bool]:
        """Store what came of a decision that is stored."""

        def write(connection: Connection) -> tuple[Feedback, bool]:
            key = _run_key(connection, project, run, feedback.seq)
            key.renew(connection)
            if key.taken is None:
                raise MissingError(f"the run `{run}` has no decision {feedback.seq}. Store that first.")
            if key.taken != attempt:
                raise FencedError(f"decision {feedback.seq} is of attempt {key.taken}, not {attempt}.")
            stored = _feedback(connection, key.id, feedback.seq)
            if stored is not None:
                if stored.values != feedback.values:
                    raise ConflictError(f"decision {feedback.seq} has other feedback already.")
                return stored, False
            _insert_feedback(connection, key.id, feedback)
            return feedback, True

        return self._engine.write(write)

    def feedback(self, project: str, run: str, seq: int) -> Feedback:
        """Return what came of a decision."""

        def read(connection: Connection) -> Feedback:
            found = _feedback(connection, _run_id(connection, project, run), seq)
            if found is None:
                raise MissingError(f"the run `{run}` has no feedback {seq}.")
            return found

        return self._engine.read(read)

    def feedbacks(self, project: str, run: str, after: int, limit: int) -> Sequence[Feedback]:
        """Return what came of up to `limit` decisions with numbers above `after`, ascending."""

        def read(connection: Connection) -> list[Feedback]:
            return _feedbacks(connection, _run_id(connection, project, run), after, limit)

        return self._engine.read(read)

    def origins(self, project: str, names: Sequence[str]) -> Mapping[str, Mapping[Origin, int]]:
        """Return for each run how many of its decisions came from where."""

        def read(connection: Connection) -> dict[str, dict[Origin, int]]:
            named = runs.c.name.in_(list(names)) & (runs.c.project_id == _project(connection, project))
            counted = (
                select(runs.c.name, decisions.c.origin, func.count())
                .join(decisions, decisions.c.run_id == runs.c.id)
                .where(named)
                .group_by(runs.c.name, decisions.c.origin)
            )
            found: dict[str, dict[Origin, int]] = {run: {} for run in names}
            for run, origin, count in connection.execute(counted):
                found[run][origin] = count
            return found

        return self._engine.read(read)

    def policies(self, project: str) -> tuple[str, ...]:
        """Return the names of all policies of a project, sorted."""

        def read(connection: Connection) -> tuple[str, ...]:
            named = select(policies.c.name).where(policies.c.project_id == _project(connection, project))
            return tuple(connection.scalars(named.order_by(policies.c.name)))

        return self._engine.read(read)

    def aliases(self, project: str, policy: str) -> tuple[Alias, ...]:
        """Return all aliases of a policy, by name."""

        def read(connection: Connection) -> tuple[Alias, ...]:
            of_policy = policy_aliases.c.policy_id == _policy(connection, project, policy)
            named = connection.scalars(select(policy_aliases.c.name).where(of_policy).order_by(policy_aliases.c.name))
            return tuple(_alias(connection, project, policy, name) for name in list(named))

        return self._engine.read(read)

    def ended(self, project: str, policy: str, after: int, limit: int) -> Sequence[Ended]:
        """Return up to `limit` runs of a policy with cursors above `after`, in the order in which they ended."""

        def read(connection: Connection) -> list[Ended]:
            _policy(connection, project, policy)
            page = (
                _run_rows(_project(connection, project))
                .add_columns(run_log.c.id)
                .join(run_log, run_log.c.run_id == runs.c.id)
                .where(policies.c.name == policy, run_log.c.id > after)
            )
            found = []
            for row in connection.execute(page.order_by(run_log.c.id).limit(limit)).all():
                number = row._mapping[runs.c.id]
                found.append(
                    Ended(
                        cursor=row._mapping[run_log.c.id],
                        run=_run_of(row, project),
                        decisions=tuple(_decisions(connection, number)),
                        feedback=tuple(_feedbacks(connection, number)),
                    )
                )
            return found

        return self._engine.read(read)

    def acquire(self, lease: str, holder: str, seconds: float) -> int | None:
        """Take a lease, or keep it for longer; None where somebody else has it."""

        def write(connection: Connection) -> int | None:
            named, time_now = leases.c.name == lease, now()
            row = connection.execute(select(leases).where(named).with_for_update()).first()
            values = {"holder": holder, "expires": time_now + round(seconds * 1e6)}
            if row is None:
                connection.execute(insert(leases).values(name=lease, fence=1, **values))
                return 1
            if row.holder not in (None, holder) and row.expires > time_now:
                return None
            fence: int = row.fence + (row.holder != holder)
            connection.execute(update(leases).where(named).values(fence=fence, **values))
            return fence

        return self._engine.write(write)

    def release(self, lease: str, holder: str) -> None:
        """Let go of a lease, if `holder` has it."""
        held = (leases.c.name == lease) & (leases.c.holder == holder)
        self._engine.write(lambda connection: connection.execute(update(leases).where(held).values(holder=None)))

    def learner(self, project: str, policy: str) -> Learner:
        """Return where learning has come to."""

        def read(connection: Connection) -> Learner:
            owner = learners.c.policy_id == _policy(connection, project, policy)
            row = connection.execute(select(learners).where(owner)).first()
            return Learner() if row is None else Learner(cursor=row.position, checkpoint=row.checkpoint)

        return self._engine.read(read)

    def save_learner(self, project: str, policy: str, state: Learner, *, lease: str, fence: int) -> None:
        """Store where learning has come to."""

        def write(connection: Connection) -> None:
            held = select(leases.c.fence).where(leases.c.name == lease).with_for_update()
            if connection.scalar(held) != fence:
                raise FencedError(f"the lease `{lease}` has passed to another learner.")
            if state.checkpoint is not None:
                _check_blob(connection, state.checkpoint)
            owner = _policy(connection, project, policy)
            values = {"position": state.cursor, "checkpoint": state.checkpoint, "updated": now()}
            place = learners.c.policy_id == owner
            if connection.execute(update(learners).where(place).values(**values)).rowcount == 0:
                connection.execute(insert(learners).values(policy_id=owner, **values))

        self._engine.write(write)

    def create_token(self, token: Token, digest: str) -> None:
        """Store a token, by the SHA-256 of what its owner sends."""

        def write(connection: Connection) -> None:
            if token.project is not None:
                _project(connection, token.project)
            same = (tokens.c.name == token.name) | (tokens.c.digest == digest)
            if connection.scalar(select(tokens.c.name).where(same)) is not None:
                raise ConflictError(f"there is a token `{token.name}` already. Give another name, or revoke it.")
            values = {name: getattr(token, name) for name in ("name", "project", "created", "expires", "revoked")}
            connection.execute(insert(tokens).values(digest=digest, scopes=_text(token.scopes), **values))

        self._engine.write(write)

    def tokens(self) -> tuple[Token, ...]:
        """Return all tokens, by name."""

        def read(connection: Connection) -> tuple[Token, ...]:
            return tuple(_token_of(row) for row in connection.execute(select(tokens).order_by(tokens.c.name)))

        return self._engine.read(read)

    def token(self, digest: str) -> Token | None:
        """Return the token that has this SHA-256, whatever its state."""

        def read(connection: Connection) -> Token | None:
            row = connection.execute(select(tokens).where(tokens.c.digest == digest)).first()
            return None if row is None else _token_of(row)

        return self._engine.read(read)

    def revoke_token(self, name: str) -> Token:
        """Close a token for good; a second time changes nothing."""

        def write(connection: Connection) -> Token:
            named = tokens.c.name == name
            still = named & tokens.c.revoked.is_(None)
            connection.execute(update(tokens).where(still).values(revoked=now()))
            row = connection.execute(select(tokens).where(named)).first()
            if row is None:
                raise MissingError(f"there is no token `{name}`.")
            return _token_of(row)

        return self._engine.write(write)

    def census(self, now: int, since: int) -> Mapping[Phase, int]:
        """Return how many runs there are in which phase, in all projects."""

        def read(connection: Connection) -> dict[Phase, int]:
            counted = select(runs.c.state, func.count()).group_by(runs.c.state)
            found: dict[Phase, int] = {row[0]: row[1] for row in connection.execute(counted)}
            going = found.pop("active", 0)
            silent = [
                connection.scalar(select(func.count()).where(runs.c.state == "active", runs.c.renewed <= now - limit))
                if now - since >= limit
                else 0
                for limit in (LEASE_SECONDS * 1_000_000, LOST_SECONDS * 1_000_000)
            ]
            stale, lost = (count or 0 for count in silent)
            return found | {"active": going - stale, "stale": stale - lost, "lost": lost}

        return self._engine.read(read)

    def quick(self) -> bool:
        """Say whether a small write would be over sooner than a thread could be woken for it."""
        return self._engine.quick()

    def waiting(self) -> int:
        """Return how many writes wait for their turn in this process."""
        return self._engine.waiting()

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


def _in_order(connection: Connection) -> None:
    """Let the numbers that a transaction draws from here on become visible in their order.

    On SQLite transactions that write come one after the other anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOG_LOCK)))


def _check_blob(connection: Connection, digest: str) -> None:
    if connection.scalar(select(blobs.c.digest).where(blobs.c.digest == digest)) is None:
        raise MissingError(f"there is no blob `{digest}`. Upload it first.")


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
    highest = select(func.max(decisions.c.seq)).where(decisions.c.run_id == runs.c.id).scalar_subquery()
    return (
        select(runs, policy_versions, policies.c.name, highest.label("highest"))
        .join(policy_versions, policy_versions.c.id == runs.c.version_id)
        .join(policies, policies.c.id == policy_versions.c.policy_id)
        .where(runs.c.project_id == owner)
    )


def _run_row(owner: int, run: str) -> Select[Any]:
    return _run_rows(owner).where(runs.c.name == run)


def _run(connection: Connection, project: str, run: str) -> Run:
    """Return a run."""
    row = connection.execute(_run_row(_project(connection, project), run)).first()
    if row is None:
        raise _no_run(project, run)
    return _run_of(row, project)


def _run_of(row: Row[Any], project: str) -> Run:
    fields = row._mapping
    return Run(
        name=fields[runs.c.name],
        spec=json.loads(fields[runs.c.spec]),
        alias=fields[runs.c.alias],
        version=_version_of(fields, project, fields[policies.c.name]),
        state=fields[runs.c.state],
        attempt=fields[runs.c.attempt],
        next_seq=0 if row.highest is None else row.highest + 1,
        created=fields[runs.c.created],
        renewed=fields[runs.c.renewed],
        ended=fields[runs.c.ended],
    )


@final
class _RunKey(NamedTuple):
    """All that a write needs of a run, and the attempt that took one of its decisions, if that is stored."""

    id: int
    name: str
    state: str
    attempt: int
    renewed: int
    taken: int | None

    def check(self, attempt: int) -> None:
        """Refuse an attempt that somebody has taken over from."""
        if attempt < self.attempt:
            raise FencedError(f"attempt {attempt} of the run `{self.name}` is over: attempt {self.attempt} goes on.")
        if attempt > self.attempt:
            raise ConflictError(f"the run `{self.name}` is at attempt {self.attempt}, not {attempt}. Claim it first.")

    def renew(self, connection: Connection) -> None:
        """Note that the run was heard of."""
        time_now = now()
        if time_now - self.renewed > _RENEWED_MICROSECONDS:
            connection.execute(update(runs).where(runs.c.id == self.id).values(renewed=time_now))


def _run_key(connection: Connection, project: str, run: str, seq: int = -1) -> _RunKey:
    """Return what a write needs of a run, and keep others from writing to it until the transaction ends.

    A decision that somebody stores while this waits for its turn is not seen yet; PostgreSQL refuses it a second time,
    and the transaction is begun again.
    """
    row = _RUN_KEY.run(connection, {"project": project, "run": run, "number": seq})
    if row is None:
        raise _no_run(project, run)
    return _RunKey(*row)


def _run_id(connection: Connection, project: str, run: str) -> int:
    """Return a run's key: all that reading needs."""
    found = select(runs.c.id).join(projects, projects.c.id == runs.c.project_id)
    number: int | None = connection.scalar(found.where(projects.c.name == project, runs.c.name == run))
    if number is None:
        raise _no_run(project, run)
    return number


def _no_run(project: str, run: str) -> MissingError:
    return MissingError(f"the project `{project}` has no run `{run}`. Begin it first.")


def _decisions(connection: Connection, run_id: int, after: int = -1, limit: int | None = None) -> list[DecisionRecord]:
    page = select(decisions).where(decisions.c.run_id == run_id, decisions.c.seq > after)
    return [_decision_of(row) for row in connection.execute(page.order_by(decisions.c.seq).limit(limit))]


def _feedbacks(connection: Connection, run_id: int, after: int = -1, limit: int | None = None) -> list[Feedback]:
    page = select(feedback).where(feedback.c.run_id == run_id, feedback.c.seq > after)
    return [_feedback_of(row) for row in connection.execute(page.order_by(feedback.c.seq).limit(limit))]


_PLAIN = (
    "seq",
    "attempt",
    "step",
    "observation",
    "explore",
    "origin",
    "entry",
    "decision",
    "probability",
    "value",
    "issued",
)


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
    return None if row is None else _feedback_of(row)


def _feedback_of(row: Row[Any]) -> Feedback:
    return Feedback(seq=row.seq, values=json.loads(row.data), received=row.received)


def _insert_feedback(connection: Connection, run_id: int, given: Feedback) -> None:
    values = {"seq": given.seq, "data": _text(dict(given.values)), "received": given.received}
    connection.execute(insert(feedback).values(run_id=run_id, **values))


def _token_of(row: Row[Any]) -> Token:
    names = ("name", "project", "created", "expires", "revoked")
    return Token(scopes=tuple(json.loads(row.scopes)), **{name: row._mapping[name] for name in names})
