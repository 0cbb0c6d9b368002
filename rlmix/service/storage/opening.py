"""Opening a storage by its address."""

from __future__ import annotations

from pathlib import Path

from rlmix.errors import ConfigError
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import Durability, Sqlite
from rlmix.service.storage.sql import SqlStorage

MEMORY = "sqlite://"
_FILE = "sqlite:///"


def open_storage(url: str, durability: Durability = "normal") -> AbstractStorage:
    """Return the storage at `url`, made if need be.

    Args:
        url: `sqlite:///FILE`, or `sqlite://` for one in memory that ends with the process.
        durability: what a file outlives.

    Raises:
        ConfigError: another kind of address.
        OutputError: the folder cannot be written.
        StorageError: the file is no database of this version, or another process serves it.
    """
    if url == MEMORY:
        return SqlStorage(Sqlite(None))
    if not url.startswith(_FILE) or url == _FILE:
        raise ConfigError(
            f"`{url}` is no address of a database. Give sqlite:///FILE (four strokes before a full path)."
        )
    return SqlStorage(Sqlite(Path(url.removeprefix(_FILE)), durability))
