"""Opening a storage by its address."""

from __future__ import annotations

from pathlib import Path

from rlmix.errors import ConfigError
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import Durability, Sqlite
from rlmix.service.storage.postgres import Postgres, shown
from rlmix.service.storage.sql import SqlStorage

MEMORY = "sqlite://"
_FILE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgresql+psycopg://")


def open_storage(url: str, durability: Durability = "normal", *, shared: bool = False) -> AbstractStorage:
    """Return the storage at `url`, made if need be.

    Args:
        url: `sqlite:///FILE`, `sqlite://` for one in memory that ends with the process, or
            `postgresql://USER@HOST/NAME` for a database that is there.
        durability: what a file outlives. PostgreSQL always waits for the disk.
        shared: whether another process may serve a file meanwhile. PostgreSQL is shared always.

    Raises:
        ConfigError: another kind of address.
        MissingDependencyError: PostgreSQL, and psycopg is not installed.
        OutputError: the folder cannot be written.
        StorageError: the database is away, not of this revision, or a file that another process serves.
    """
    if url == MEMORY:
        return SqlStorage(Sqlite(None))
    path = file_of(url)
    return SqlStorage(Postgres(url) if path is None else Sqlite(path, durability, shared=shared))


def file_of(url: str) -> Path | None:
    """Return the file that an address of SQLite names; None for one of PostgreSQL.

    Raises:
        ConfigError: another kind of address.
    """
    if url.startswith(_POSTGRES) and url not in _POSTGRES:
        return None
    if not url.startswith(_FILE) or url == _FILE:
        raise ConfigError(
            f"`{shown(url)}` is no address of a database. Give sqlite:///FILE (four strokes before a full path), or "
            "postgresql://USER@HOST/NAME."
        )
    return Path(url.removeprefix(_FILE))
