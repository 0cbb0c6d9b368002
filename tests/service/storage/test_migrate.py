"""The revisions make the tables that the queries name, and bring every database that was ever written to them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, func, insert, select, text

from rlmix.errors import StorageError
from rlmix.service.storage import maintenance, migrate
from rlmix.service.storage.opening import open_storage
from rlmix.service.storage.postgres import postgres_engine
from rlmix.service.storage.tables import metadata

DATABASES = Path(__file__).with_name("databases")
REVISIONS = migrate.revisions()

Rows = dict[str, list[dict[str, Any]]]
RowsIn = Callable[[str], Rows]


def engine_of(url: str) -> Engine:
    return postgres_engine(url) if url.startswith("postgres") else create_engine(url)


def kept(revision: str, path: Path) -> None:
    """Make the file of SQLite that is kept of a revision."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((DATABASES / f"r{revision}.sql").read_text())


def place(revision: str, url: str, tmp_path: Path, rows_in: RowsIn) -> Rows:
    """Put the rows that are kept of a revision into a database of that revision, and return them."""
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else tmp_path / "kept.db"
    kept(revision, path)
    rows = rows_in(f"sqlite:///{path}")
    if url.startswith("postgres"):
        # Of a revision the same code makes the tables everywhere, and it never changes: see below.
        engine = engine_of(url)
        with engine.begin() as connection:
            migrate.upgrade(connection, revision)
            made = MetaData()
            made.reflect(connection)
            for table in made.sorted_tables:
                if rows.get(table.name):
                    connection.execute(insert(table), rows[table.name])
                    go_on_counting(connection, table)
        engine.dispose()
    return rows


def go_on_counting(connection: Connection, table: Table) -> None:
    if "id" in table.c:
        highest = select(func.max(table.c.id)).scalar_subquery()
        connection.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), highest)))


def test_the_revisions_make_the_tables(url: str) -> None:
    """A column that only one of them knows fails at the first query, on somebody's database."""
    engine = engine_of(url)
    with engine.begin() as connection:
        migrate.prepare(connection, url)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert migrate.revision_of(connection) == migrate.head()
        migrate.prepare(connection, url)
    engine.dispose()


def test_a_database_is_kept_of_each_revision() -> None:
    """What was not kept cannot be tried. databases/make.py writes the newest."""
    assert {path.name for path in DATABASES.glob("*.sql")} == {f"r{revision}.sql" for revision in REVISIONS}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_never_changes(tmp_path: Path, revision: str) -> None:
    """Two databases of one revision with different tables could not be told apart."""
    kept(revision, tmp_path / "kept.db")
    engine = create_engine(f"sqlite:///{tmp_path}/made.db")
    with engine.begin() as connection:
        migrate.upgrade(connection, revision)
    engine.dispose()
    tables = []
    for name in ("kept.db", "made.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection_:
            found = connection_.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
        tables.append({table: " ".join(str(statement).split()) for table, statement in found})
    assert tables[0] == tables[1]


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_row_of_every_revision_is_there_after_an_upgrade(
    url: str, tmp_path: Path, rows_in: RowsIn, revision: str
) -> None:
    """Somebody's record of years must not depend on when the service was installed."""
    before = place(revision, url, tmp_path, rows_in)
    assert all(before[name] for name in before)
    told: list[str] = []
    assert maintenance.upgrade(url, told.append) == migrate.head()
    steps = len(REVISIONS) - 1 - REVISIONS.index(revision)
    assert sum("step" in line for line in told) == steps
    after = rows_in(url)
    for name, rows in before.items():
        assert [{column: row[column] for column in rows[0]} for row in after[name]] == rows
    readable(url, after)
    assert maintenance.check(url).problems == ()
    copies = [path for path in tmp_path.glob("x.db.*") if path.suffix != ".lock"]
    assert len(copies) == (1 if steps and url.startswith("sqlite") else 0)
    for path in copies:
        assert rows_in(f"sqlite:///{path}") == before


def readable(url: str, rows: Rows) -> None:
    """Compare all rows with what the storage answers, and write something new."""
    keys = {
        name: {row["id"]: row for row in rows[name]} for name in ("projects", "policies", "policy_versions", "runs")
    }
    with closing(open_storage(url)) as storage:
        for row in rows["blobs"]:
            assert storage.blob(row["digest"]) == row["data"]
        for row in keys["policy_versions"].values():
            policy = keys["policies"][row["policy_id"]]
            project = keys["projects"][policy["project_id"]]["name"]
            assert storage.version(project, policy["name"], row["number"]).document == row["document"]
        for row in rows["policy_aliases"]:
            policy = keys["policies"][row["policy_id"]]
            alias = storage.alias(keys["projects"][policy["project_id"]]["name"], policy["name"], row["name"])
            found = keys["policy_versions"][row["version_id"]]["number"], row["revision"]
            assert (alias.version.number, alias.revision) == found
        for row in keys["runs"].values():
            run = storage.run(keys["projects"][row["project_id"]]["name"], row["name"])
            assert (run.state, run.created, run.ended, dict(run.spec)) == (
                row["state"],
                row["created"],
                row["ended"],
                json.loads(row["spec"]),
            )
        for name, read in (("decisions", storage.decision), ("feedback", storage.feedback)):
            for row in rows[name]:
                run_row = keys["runs"][row["run_id"]]
                stored: Any = read(keys["projects"][run_row["project_id"]]["name"], run_row["name"], row["seq"])
                same = ("probability", "value", "explore", "observation", "issued") if name == "decisions" else ()
                assert [getattr(stored, field) for field in same] == [row[field] for field in same]
                if name == "feedback":
                    assert (dict(stored.values), stored.received) == (json.loads(row["data"]), row["received"])
        ended = [run for run in keys["runs"].values() if run["state"] != "active"]
        found = [
            (project, one.run.name)
            for project in storage.projects()
            for one in storage.ended(project, "default", 0, 100)
        ]
        assert sorted(found) == sorted((keys["projects"][run["project_id"]]["name"], run["name"]) for run in ended)
        assert storage.create_project("new")
        storage.create_run("default", "new", "default", "default", {"total_steps": 1})
        assert storage.end_run("default", "new", "finished", 1).state == "finished"
        assert storage.ended("default", "default", 0, 100)[-1].run.name == "new"


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_older_database_is_refused_with_the_command_that_mends_it(
    url: str, tmp_path: Path, rows_in: RowsIn, revision: str
) -> None:
    """A service that changes tables by itself would do so while another still runs, and without a copy."""
    before = place(revision, url, tmp_path, rows_in)
    with pytest.raises(StorageError, match=f"revision {revision}.*rlmix db upgrade --db {url[:10]}"):
        open_storage(url)
    assert any(revision in problem for problem in maintenance.check(url).problems)
    assert rows_in(url) == before


def test_a_newer_database_is_refused(url: str) -> None:
    """Rows of a kind that this version does not know would be written wrongly."""
    open_storage(url).close()
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    calls: tuple[Callable[[], object], ...] = (
        lambda: open_storage(url),
        lambda: maintenance.upgrade(url, print),
        lambda: maintenance.check(url),
    )
    for call in calls:
        with pytest.raises(StorageError, match="9999.*newest is.*pip install --upgrade"):
            call()


def test_a_step_that_fails_is_undone_whole(
    url: str, tmp_path: Path, rows_in: RowsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a step is a database of no revision, which nothing can mend."""
    before = place(REVISIONS[0], url, tmp_path, rows_in)
    upgrade = migrate.upgrade

    def fail(connection: Connection, to: str | None = None) -> None:
        upgrade(connection, to)
        connection.execute(text("CREATE TABLE half (x INTEGER)"))
        raise StorageError("no")

    monkeypatch.setattr(migrate, "upgrade", fail)
    with pytest.raises(StorageError, match="no"):
        maintenance.upgrade(url, print)
    monkeypatch.undo()
    engine = engine_of(url)
    with engine.begin() as connection:
        assert migrate.revision_of(connection) == REVISIONS[0]
    engine.dispose()
    assert rows_in(url) == before
    assert maintenance.upgrade(url, print) == migrate.head()


def test_a_step_that_leaves_loose_ends_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite does not look meanwhile, so that tables can be replaced; nobody would look later."""
    kept(REVISIONS[0], tmp_path / "x.db")
    upgrade = migrate.upgrade

    def lose(connection: Connection, to: str | None = None) -> None:
        upgrade(connection, to)
        connection.execute(text("DELETE FROM runs WHERE id = 1"))

    monkeypatch.setattr(migrate, "upgrade", lose)
    with pytest.raises(StorageError, match="undone: rows of `decisions` refer to rows of `runs`"):
        maintenance.upgrade(f"sqlite:///{tmp_path}/x.db", print)
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection_:
        assert connection_.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_an_upgrade_of_what_is_in_use_is_refused(tmp_path: Path) -> None:
    """The service would go on writing rows of the older kind."""
    url = f"sqlite:///{tmp_path}/x.db"
    with closing(open_storage(url)), pytest.raises(StorageError, match="in use"):
        maintenance.upgrade(url, print)


def test_an_empty_postgres_is_made_ready(postgres: str) -> None:
    """Whoever installs may have the right to make tables, and the service not."""
    assert maintenance.upgrade(postgres, print) == migrate.head()
    open_storage(postgres).close()
