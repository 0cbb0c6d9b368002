"""The revisions make the tables that the queries name."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from rlmix.service.storage import migrate
from rlmix.service.storage.tables import metadata


def test_the_revisions_make_the_tables() -> None:
    """A column that only one of them knows fails at the first query, on somebody's database."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        migrate.upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_heads() == (migrate.head(),)
        migrate.upgrade(connection)
    engine.dispose()
