"""A database of each kind, with rows in every table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from sqlalchemy import MetaData, create_engine, select

from rlmix.service.storage.opening import open_storage
from rlmix.service.storage.postgres import postgres_engine

DATABASES = Path(__file__).with_name("databases")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that is not there, or empty."""
    return f"sqlite:///{tmp_path}/x.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The program that writes the databases that are kept."""
    spec = importlib.util.spec_from_file_location("make", DATABASES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def filled(url: str, make: ModuleType) -> str:
    """The address of a database that has rows in every table, and that nobody uses."""
    with closing(open_storage(url)) as storage:
        make.fill(storage)
    return url


@pytest.fixture(scope="session")
def rows_in() -> Callable[[str], dict[str, list[dict[str, object]]]]:
    """A function that returns every row of every table of a database."""

    def found(url: str) -> dict[str, list[dict[str, object]]]:
        engine = postgres_engine(url) if url.startswith("postgres") else create_engine(url)
        tables = MetaData()
        with engine.begin() as connection:
            tables.reflect(connection)
            rows = {
                table.name: [
                    dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
                ]
                for table in tables.sorted_tables
                if table.name != "alembic_version"
            }
        engine.dispose()
        return rows

    return found
