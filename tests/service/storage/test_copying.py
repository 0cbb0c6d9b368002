"""Everything moves from one kind of database to another, and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from rlmix.errors import ConfigError, StorageError
from rlmix.service.storage import copying
from rlmix.service.storage.copying import copy
from rlmix.service.storage.opening import open_storage
from rlmix.testing.storage import policy_in

RowsIn = Callable[[str], dict[str, list[dict[str, Any]]]]


def silent(done: int, total: int) -> None:
    """Show nothing."""


def test_all_rows_are_the_same_there_and_back(
    tmp_path: Path, postgres: str, make: Any, rows_in: RowsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves to PostgreSQL must lose nothing, to the last bit, nor be bound to stay."""
    monkeypatch.setattr(copying, "_BATCH", 3)
    first, third = f"sqlite:///{tmp_path}/first.db", f"sqlite:///{tmp_path}/third.db"
    with closing(open_storage(first)) as storage:
        make.fill(storage)
    before = rows_in(first)
    assert all(before.values())
    counts = {name: len(rows) for name, rows in before.items()}
    seen: list[tuple[int, int]] = []
    assert copy(first, postgres, lambda *done: seen.append(done)) == counts
    assert seen[-1] == (sum(counts.values()), sum(counts.values()))
    assert rows_in(postgres) == before
    assert copy(postgres, third, silent) == counts
    assert rows_in(third) == rows_in(first) == before


def test_numbers_go_on_behind_those_that_were_copied(tmp_path: Path, postgres: str, make: Any) -> None:
    """PostgreSQL counts apart from its rows; a learner would miss runs that end under a number it has passed."""
    source = f"sqlite:///{tmp_path}/x.db"
    with closing(open_storage(source)) as storage:
        make.fill(storage)
    copy(source, postgres, silent)
    for url in (source, postgres):
        with closing(open_storage(url)) as storage:
            cursor = max(one.cursor for one in storage.ended("other", "default", 0, 10))
            policy_in(storage, project="new")
            storage.create_run("default", "new", "default", "default", {"x": 1})
            storage.end_run("default", "new", "finished", 1)
            assert storage.ended("default", "default", cursor, 10)[0].run.name == "new"


def test_a_target_that_is_not_empty_is_left_alone(filled: str, tmp_path: Path, rows_in: RowsIn) -> None:
    """Two databases have different rows under one number."""
    other = f"sqlite:///{tmp_path}/other.db"
    with closing(open_storage(other)) as storage:
        storage.create_project("mine")
    for source, target in ((filled, other), (other, filled)):
        before = rows_in(target)
        with pytest.raises(StorageError, match="not empty: it has rows in .*projects"):
            copy(source, target, silent)
        assert rows_in(target) == before


def test_a_copy_that_fails_leaves_an_empty_target(
    filled: str, tmp_path: Path, rows_in: RowsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can simply be tried again."""
    target = f"sqlite:///{tmp_path}/other.db"

    def fail(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(filled, target, fail)
    assert not any(rows_in(target).values())
    copy(filled, target, silent)
    assert rows_in(target) == rows_in(filled)


def test_a_database_that_a_service_uses_is_not_copied(tmp_path: Path) -> None:
    """What is decided meanwhile would be missing in the copy."""
    used, free = f"sqlite:///{tmp_path}/used.db", f"sqlite:///{tmp_path}/free.db"
    open_storage(free).close()
    with closing(open_storage(used)):
        for source, target in ((used, free), (free, used)):
            with pytest.raises(StorageError, match="in use"):
                copy(source, target, silent)


def test_what_cannot_be_copied_is_said(tmp_path: Path) -> None:
    """Nothing is made where the source is not there."""
    here = f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(StorageError, match="no database"):
        copy(here, f"sqlite:///{tmp_path}/y.db", silent)
    assert not list(tmp_path.iterdir())
    open_storage(here).close()
    with pytest.raises(ConfigError, match="source and the target"):
        copy(here, f"sqlite:///{tmp_path}/../{tmp_path.name}/x.db", silent)
    with pytest.raises(ConfigError, match="memory"):
        copy(here, "sqlite://", silent)
