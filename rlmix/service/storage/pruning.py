"""Deleting what nobody needs any more, in transactions that a service beside it need not wait for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select

from rlmix.errors import MissingError
from rlmix.service.storage import migrate
from rlmix.service.storage.maintenance import Direct, writing
from rlmix.service.storage.postgres import shown
from rlmix.service.storage.tables import blobs, decisions, feedback, metadata, projects, runs

# What one transaction deletes.
_ROWS = 1000
_BLOBS = 16
# A blob is uploaded before the version that needs it is added.
_BLOB_MICROSECONDS = 86_400_000_000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was deleted, or would be.

    Attributes:
        runs: that lost what they had.
        decisions: rows.
        feedback: rows.
        blobs: that nothing referred to.
        blob_bytes: their size.
    """

    runs: int
    decisions: int
    feedback: int
    blobs: int
    blob_bytes: int


def prune(url: str, before: int, project: str | None, *, dry_run: bool, progress: Callable[[int, int], None]) -> Pruned:
    """Delete decisions and feedback of runs that have ended, and blobs older than a day that nothing refers to.

    The runs themselves stay, as does everything of those that go on. A service may use the database meanwhile. If it is
    interrupted, what is left is whole: no feedback without its decision.

    Args:
        url: address of the database.
        before: runs that ended earlier, microseconds since 1970, UTC.
        project: whose runs; None for all.
        dry_run: count, and delete nothing.
        progress: told how many runs of how many are done.

    Raises:
        MissingError: there is no such project.
        StorageError: the database cannot answer, or is not of this revision.
    """
    with writing(url, "foreign_keys=ON") as connections:
        engine = Direct(connections)
        engine.read(lambda connection: migrate.require(connection, shown(url)))
        found = engine.read(lambda connection: _ended(connection, before, project))
        gone = []
        for number, run in enumerate(found):
            gone.append(engine.read(partial(_count, run=run)) if dry_run else _empty(engine, run))
            progress(number + 1, len(found))
        sizes = engine.read(_unused_blobs)
        if not dry_run:
            digests = list(sizes)
            for first in range(0, len(digests), _BLOBS):
                engine.write(partial(_delete_blobs, digests=digests[first : first + _BLOBS]))
    return Pruned(
        runs=sum(took != (0, 0) for took in gone),
        decisions=sum(took[0] for took in gone),
        feedback=sum(took[1] for took in gone),
        blobs=len(sizes),
        blob_bytes=sum(sizes.values()),
    )


def _ended(connection: Connection, before: int, project: str | None) -> list[int]:
    """Return the keys of the runs that ended earlier."""
    found = select(runs.c.id).where(runs.c.state != "active", runs.c.ended < before).order_by(runs.c.id)
    if project is not None:
        owner = connection.scalar(select(projects.c.id).where(projects.c.name == project))
        if owner is None:
            raise MissingError(f"there is no project `{project}`.")
        found = found.where(runs.c.project_id == owner)
    return list(connection.scalars(found))


def _count(connection: Connection, run: int) -> tuple[int, int]:
    """Return how many decisions, and how much feedback, a run has."""
    counts = [select(func.count()).select_from(table).where(table.c.run_id == run) for table in (decisions, feedback)]
    return connection.execute(counts[0]).scalar_one(), connection.execute(counts[1]).scalar_one()


def _empty(engine: Direct, run: int) -> tuple[int, int]:
    """Delete what a run has, and return how many decisions and how much feedback that was."""
    total = (0, 0)
    while (took := engine.write(partial(_delete_some, run=run)))[0]:
        total = (total[0] + took[0], total[1] + took[1])
    return total


def _delete_some(connection: Connection, run: int) -> tuple[int, int]:
    # As every write to a run does: feedback that arrives late waits, and then finds no decision.
    connection.execute(select(runs.c.id).where(runs.c.id == run).with_for_update())
    first = select(decisions.c.seq).where(decisions.c.run_id == run).order_by(decisions.c.seq).limit(_ROWS)
    seqs = list(connection.scalars(first))
    if not seqs:
        return 0, 0
    # Feedback first: it refers to its decision.
    below = [(table.c.run_id == run) & (table.c.seq <= seqs[-1]) for table in (feedback, decisions)]
    lost = connection.execute(delete(feedback).where(below[0])).rowcount
    return connection.execute(delete(decisions).where(below[1])).rowcount, lost


def _unused() -> ColumnElement[bool]:
    """Return the condition that nothing refers to a blob, and that it has had time to be referred to."""
    references = [
        key.parent for table in metadata.tables.values() for key in table.foreign_keys if key.column is blobs.c.digest
    ]
    old = blobs.c.created < time.time_ns() // 1000 - _BLOB_MICROSECONDS
    condition: ColumnElement[bool] = old
    for column in references:
        condition &= ~exists().where(column == blobs.c.digest)
    return condition


def _unused_blobs(connection: Connection) -> dict[str, int]:
    """Return the sizes of blobs that nothing refers to, by digest."""
    found = connection.execute(select(blobs.c.digest, func.length(blobs.c.data)).where(_unused()))
    return {row[0]: row[1] for row in found}


def _delete_blobs(connection: Connection, digests: list[str]) -> None:
    connection.execute(delete(blobs).where(blobs.c.digest.in_(digests), _unused()))
