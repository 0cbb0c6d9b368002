"""The storage contract over SQLite, in a file and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import MEMORY, open_storage
from rlmix.testing import StorageContract
from rlmix.testing.storage import record, run_in


class TestMemory(StorageContract):
    """In memory."""

    @pytest.fixture
    def storage(self) -> Iterator[AbstractStorage]:
        storage = open_storage(MEMORY)
        yield storage
        storage.close()


class TestFile(StorageContract):
    """In a file."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[AbstractStorage]:
        storage = open_storage(f"sqlite:///{tmp_path}/folder/rlmix.db")
        yield storage
        storage.close()


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_what_is_written_is_there_after_a_restart(tmp_path: Path, durability: str) -> None:
    """A service that forgets when it restarts has kept nothing."""
    url = f"sqlite:///{tmp_path}/rlmix.db"
    storage = run_in(open_storage(url, "full" if durability == "full" else "normal"))
    storage.put_decision("p", "r", record(0))
    storage.close()
    again = open_storage(url)
    assert again.decision("p", "r", 0) == record(0)
    assert again.put_decision("p", "r", record(0, entry=3)) == (record(0), False)
    again.close()
