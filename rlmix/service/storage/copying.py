"""Moving everything from one database to another, whatever kinds they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext

from sqlalchemy import Connection, Table, func, insert, select

from rlmix.errors import ConfigError, StorageError
from rlmix.service.storage import migrate
from rlmix.service.storage.engine import sqlite_lock, translated
from rlmix.service.storage.maintenance import reading, writing
from rlmix.service.storage.opening import MEMORY, file_of, open_storage
from rlmix.service.storage.postgres import shown
from rlmix.service.storage.tables import blobs, metadata

# Rows that are in memory at once; of blobs, which may be large, one.
_BATCH = 1000


def copy(source: str, target: str, progress: Callable[[int, int], None]) -> Mapping[str, int]:
    """Copy all rows to an empty database, in one transaction. No service may use either of the two.

    Args:
        source: address of a database.
        target: address of another, whose file or tables are made if need be.
        progress: told how many rows of how many are copied.

    Returns:
        How many rows were copied, by table.

    Raises:
        ConfigError: one of the addresses is none.
        StorageError: a database is in use, the source is not of this revision, or the target is not empty.
    """
    if MEMORY in (source, target):
        raise ConfigError(f"`{MEMORY}` is memory, which ends with its process. Give sqlite:///FILE.")
    path, made = file_of(source), file_of(target)
    if path is not None and made is not None and path.resolve() == made.resolve():
        raise ConfigError(f"`{shown(source)}` is the source and the target. Give another target.")
    with (
        translated(),
        reading(source) as read,
        closing(sqlite_lock(path)) if path else nullcontext(),
        read.begin() as old,
    ):
        migrate.require(old, shown(source))
        # This makes the tables.
        open_storage(target).close()
        with (
            closing(sqlite_lock(made)) if made else nullcontext(),
            writing(target, "foreign_keys=ON") as write,
            write.begin() as new,
        ):
            _check_empty(new, target)
            return _copy(old, new, progress)


def _check_empty(connection: Connection, address: str) -> None:
    full = [table.name for table in metadata.sorted_tables if _rows(connection, table)]
    if full:
        raise StorageError(f"`{shown(address)}` is not empty: it has rows in {', '.join(full)}. Give an empty one.")


def _copy(old: Connection, new: Connection, progress: Callable[[int, int], None]) -> dict[str, int]:
    wanted = {table.name: _rows(old, table) for table in metadata.sorted_tables}
    done, total = 0, sum(wanted.values())
    for table in metadata.sorted_tables:
        size = 1 if table is blobs else _BATCH
        every = select(table).order_by(*table.primary_key)
        with old.execution_options(yield_per=size).execute(every) as found:
            for rows in found.mappings().partitions():
                new.execute(insert(table), [dict(row) for row in rows])
                done += len(rows)
                progress(done, total)
        _go_on_counting(new, table)
    copied = {table.name: _rows(new, table) for table in metadata.sorted_tables}
    if copied != wanted:
        raise StorageError(f"the copy has {copied} rows, the source {wanted}. Nothing was kept.")
    return copied


def _go_on_counting(connection: Connection, table: Table) -> None:
    """Let PostgreSQL draw the next number behind the highest that was copied, as SQLite does by itself."""
    column = table.autoincrement_column
    if connection.dialect.name != "postgresql" or column is None:
        return
    highest = connection.scalar(select(func.max(column)))
    if highest is not None:
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(select(func.setval(sequence, highest)))


def _rows(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()
