"""Bringing a database to the tables of this version (Alembic, without its command line)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, select, text

from rlmix.errors import StorageError
from rlmix.service.failpoints import fail_point

_REVISIONS = Path(__file__).parent / "revisions"

# Of the advisory locks on PostgreSQL: any number that nobody else in the database uses.
_LOCK = 0x726C6D69780002


def head() -> str:
    """Return the newest revision."""
    return revisions()[-1]


def revisions() -> tuple[str, ...]:
    """Return all revisions, the oldest first."""
    return tuple(reversed([step.revision for step in _script().walk_revisions()]))


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database; None if it is empty.

    Raises:
        StorageError: it holds the tables of something else, or was written by a newer rlmix.
    """
    found = MigrationContext.configure(connection).get_current_heads()
    if not found:
        others = inspect(connection).get_table_names()
        if set(others) - {"alembic_version"}:
            raise StorageError(f"the database holds tables of something else: {', '.join(sorted(others)[:5])}.")
        return None
    if len(found) > 1 or found[0] not in revisions():
        raise StorageError(
            f"the database is of revision {', '.join(found)}, which this rlmix does not know: its newest is {head()}. "
            "Use the rlmix that wrote it (pip install --upgrade 'rlmix[serve]'), or another database."
        )
    return found[0]


def prepare(connection: Connection, address: str) -> None:
    """Make the tables in an empty database; leave one of this revision as it is.

    Args:
        connection: within a transaction.
        address: of the database, as the message names it.

    Raises:
        StorageError: the database is of another revision, or holds the tables of something else.
    """
    alone(connection)
    if revision_of(connection) is None:
        upgrade(connection)
    require(connection, address)


def require(connection: Connection, address: str) -> None:
    """Refuse a database that is not of this revision, and say what brings it there.

    Args:
        connection: to the database.
        address: of it, as the message names it.

    Raises:
        StorageError: it is of another revision, or empty, or holds the tables of something else.
    """
    found = revision_of(connection)
    if found != head():
        is_now = "is empty" if found is None else f"is of revision {found}"
        raise StorageError(
            f"the database {is_now}, this rlmix needs revision {head()}. Stop what uses it, and run: "
            f"rlmix db upgrade --db {address}"
        )


def upgrade(connection: Connection, to: str | None = None) -> None:
    """Take the steps to a revision.

    Args:
        connection: within a transaction.
        to: the revision; None for the newest.
    """
    script, aim = _script(), to or head()

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs(aim, revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, on_version_apply=lambda **_: fail_point("service.mid_migration"))
        environment.run_migrations()


def alone(connection: Connection) -> None:
    """Keep others on PostgreSQL from changing tables until this transaction ends, and wait for those who do.

    Nobody else writes to a file of SQLite meanwhile anyway.
    """
    if connection.dialect.name == "postgresql":
        for limit in ("statement_timeout", "lock_timeout"):
            connection.execute(text(f"SET LOCAL {limit} = 0"))
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def _script() -> ScriptDirectory:
    return ScriptDirectory(str(_REVISIONS), version_locations=[str(_REVISIONS)])
