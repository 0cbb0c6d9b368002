"""Bringing a database to the tables of this version (Alembic, without its command line)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from rlmix.errors import StorageError

_REVISIONS = Path(__file__).parent / "revisions"


def head() -> str:
    """Return the newest revision."""
    (newest,) = _script().get_heads()
    return newest


def upgrade(connection: Connection) -> None:
    """Make the tables in an empty database; leave one of this version as it is.

    Args:
        connection: within a transaction.

    Raises:
        StorageError: the database is of another version, or holds the tables of something else.
    """
    found, newest = MigrationContext.configure(connection).get_current_heads(), head()
    if found == (newest,):
        return
    if found:
        raise StorageError(
            f"the database has the tables of revision {', '.join(found)}, this rlmix needs {newest}. Use the rlmix "
            "that wrote it, or another database."
        )
    others = inspect(connection).get_table_names()
    if others:
        raise StorageError(f"the database holds tables of something else: {', '.join(sorted(others)[:5])}.")
    script = _script()

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs(newest, revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def _script() -> ScriptDirectory:
    return ScriptDirectory(str(_REVISIONS), version_locations=[str(_REVISIONS)])
